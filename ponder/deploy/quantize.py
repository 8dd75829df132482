"""Eight bits for the matrix products of a step: onnxruntime's dynamic quantisation, or fixed ranges with SmoothQuant.

Weights are quantised with a scale for each output channel, activations with one for each tensor. Embeddings, norms,
readouts, heads, the Lambda head and the policy are no part of a step's graph and stay as they are: they cost little and
decide the answer.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder.deploy.runtime import OnnxModel
from ponder.deploy.sessions import Graph
from ponder.errors import ArgumentError

__all__ = ["quantize", "ranges_of"]

Channels = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]
"""The lowest and the highest value of each channel of the tensors that products read, `(channels,)` each, by name."""

_STRENGTH = 0.75  # α of SmoothQuant: near the best on MiniLM and MPNet


def quantize(path: Path, everything: bool, channels: Channels | None = None) -> int:
    """Quantise the products with weights in a graph, in place, and return how many were.

    Weights use 7 bits of the 8: processors without VNNI add pairs of products in 16 bits, which overflow otherwise. A
    product that has more inputs than outputs, the second of a feed-forward block, reads activations of which a few are
    far larger than all others; one scale for all of them leaves little of the rest.

    Args:
        path: The graph.
        everything: Quantise these products too: faster, where the model bears it.
        channels: Values of what all products read, on examples, by which ranges are fixed; where None, each call looks
            for its own, and a row's output depends a little on the rows beside it.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(path))
    del model.graph.value_info[:]  # the quantiser infers shapes itself, and stumbles over the exporter's
    shapes = _products(model.graph)
    kept = _odd(model.graph) + [name for name, (_, (i, o)) in shapes.items() if i > o and not everything]
    ranges = None if channels is None else _smooth(model.graph, channels, kept)
    level = logging.root.level
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made_path = Path(scratch) / path.name
        try:
            logging.root.setLevel(logging.ERROR)  # it logs advice on preparing the graph, which needs none
            quantize_dynamic(
                model,
                str(made_path),
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*kept, *(f"{name}_MatMul" for name in kept)],  # as onnxruntime renames a Gemm
            )
        finally:
            logging.root.setLevel(level)
        made = onnx.load(str(made_path))
    count: int = sum(node.op_type == "MatMulInteger" for node in made.graph.node)
    if ranges is not None:
        _fix(made.graph, ranges)
        _fuse(made)
    onnx.save(made, str(path))
    return count


def ranges_of(folder: Path, examples: Any) -> list[Channels]:
    """Return the range of every channel that products with weights read, for each graph of the steps, at full depth.

    Args:
        folder: An export in fp32.
        examples: Examples as for `OnnxModel.predict`.
    """
    model = OnnxModel(folder)
    with tempfile.TemporaryDirectory() as scratch:
        watched = {name: _Watched(folder / name, Path(scratch) / name) for name in model.manifest.steps}
        model._graphs = {**model._graphs, **watched}
        model.record(examples)
    if not all(np.isfinite(end).all() for graph in watched.values() for pair in graph.ranges.values() for end in pair):
        raise ArgumentError(
            "calibration",
            expected="examples on which every value is finite",
            got="one with NaN or infinity on its way",
            remedy="Pass some hundred examples like those to come.",
        )
    return [graph.ranges for graph in watched.values()]


class _Watched(Graph):
    """A graph of a step that notes the ranges of what its products read.

    Args:
        path: The file.
        scratch: File for a copy of the graph that gives these tensors too.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        import onnx
        from onnx import TensorProto, helper

        model = onnx.load(str(path))
        given = {value.name for value in (*model.graph.input, *model.graph.output)}
        self._names = sorted({node.input[0] for node, _ in _products(model.graph).values()})
        inner = [name for name in self._names if name not in given]
        model.graph.output.extend([helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner])
        onnx.save(model, str(scratch))
        super().__init__(scratch)
        self.ranges: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}

    def __call__(self, arrays: Any) -> dict[str, NDArray[Any]]:
        found = super().__call__(arrays)
        for name in self._names:
            value = found[name] if name in found else arrays[name]
            rows = value.reshape(-1, value.shape[-1])
            low, high = self.ranges.get(name, (np.inf, -np.inf))
            self.ranges[name] = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
        return found


def _products(graph: Any) -> dict[str, tuple[Any, tuple[int, int]]]:
    """Return the nodes that multiply with a matrix of weights, with its numbers of inputs and outputs, by name."""
    shapes = {weight.name: list(weight.dims) for weight in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and len(shapes.get(node.input[1], ())) == 2:
            inputs, outputs = shapes[node.input[1]][:: -1 if _transposed(node) else 1]
            found[node.name] = node, (inputs, outputs)
    return found


def _odd(graph: Any) -> list[str]:
    """Return names of products that onnxruntime would quantise, and whose kernels then fail when they run.

    They multiply with no matrix of weights, or have a bias of another length.
    """
    shapes, known = {weight.name: tuple(weight.dims) for weight in graph.initializer}, _products(graph)
    made = {node.output[0]: node for node in graph.node if node.op_type in ("MatMul", "Gemm")}
    odd = [node.name for node in made.values() if node.name not in known]
    for node in graph.node:
        product = next((made[name] for name in node.input if name in made), None) if node.op_type == "Add" else None
        bias = next((shapes[name] for name in node.input if name in shapes), ())
        if product is not None and len(bias) == 1 and product.name in known:
            odd += [product.name] if bias != (known[product.name][1][1],) else []
    return odd


def _smooth(graph: Any, channels: Channels, kept: list[str]) -> dict[str, tuple[float, float]]:
    r"""Divide what products read by a factor a channel, and multiply the rows of their weights with it; in place.

    s_j = max|X_j|^α / max|W_j|^(1−α) (SmoothQuant, Xiao et al. 2023, Eq. 4), where products that read the same tensor
    share their factors. X W = (X diag(s)⁻¹) (diag(s) W): what was large in a channel of the activations, which have one
    scale, is in weights that have one for each output.

    Returns:
        The lowest and the highest value by the name of the tensor that a product reads now.
    """
    from onnx import helper, numpy_helper

    weights = {weight.name: weight for weight in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for name, (node, _) in _products(graph).items():
        if name not in kept and sum(node.input[1] in other.input for other in graph.node) == 1:
            readers.setdefault(node.input[0], []).append(node)
    ranges = {name: (float(low.min()), float(high.max())) for name, (low, high) in channels.items()}
    for name, nodes in readers.items():
        low, high = channels[name]
        matrices = [_by_input(node, numpy_helper.to_array(weights[node.input[1]])) for node in nodes]
        of_weights = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
        of_inputs = np.maximum(np.abs(low), np.abs(high))
        sound = (of_inputs > 0) & (of_weights > 0)
        factors = np.ones_like(of_inputs, dtype=np.float32)
        factors[sound] = of_inputs[sound] ** _STRENGTH / of_weights[sound] ** (1.0 - _STRENGTH)
        divided, inverse = f"{name}.smoothed", f"{name}.smoothing"
        for node, matrix in zip(nodes, matrices, strict=True):
            scaled = np.ascontiguousarray(_by_input(node, factors[:, None] * matrix))
            weights[node.input[1]].CopyFrom(numpy_helper.from_array(scaled, node.input[1]))
            node.input[0] = divided
        graph.initializer.append(numpy_helper.from_array(np.float32(1.0) / factors, inverse))
        place = min(place for place, node in enumerate(graph.node) if divided in node.input)
        graph.node.insert(place, helper.make_node("Mul", [name, inverse], [divided], name=divided))
        ranges[divided] = float((low / factors).min()), float((high / factors).max())
    return ranges


def _fix(graph: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Give the activations of a dynamically quantised graph the scales of these ranges, in which 0 is exact."""
    from onnx import helper, numpy_helper

    for place, node in enumerate(graph.node):
        if node.op_type != "DynamicQuantizeLinear":
            continue
        low, high = min(ranges[node.input[0]][0], 0.0), max(ranges[node.input[0]][1], 0.0)
        scale = np.float32((high - low) / 255.0 or 1.0)
        zero = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
        values, scale_name, zero_name = node.output
        fixed = ((scale, scale_name), (zero, zero_name))
        graph.initializer.extend([numpy_helper.from_array(np.array(value), name) for value, name in fixed])
        made = helper.make_node("QuantizeLinear", [node.input[0], scale_name, zero_name], [values], name=node.name)
        graph.node[place].CopyFrom(made)


def _fuse(model: Any) -> None:
    """Join each integer product with its scale and its bias to onnxruntime's own MatMulIntegerToFloat, which is faster.

    Where ranges are looked for at each call, onnxruntime joins them itself when it reads the graph.
    """
    from onnx import helper

    graph = model.graph
    weights = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    given_out = {value.name for value in graph.output}
    maker = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for read in node.input:
            readers.setdefault(read, []).append(node)
    fused, gone = dict[str, Any](), set[str]()  # by the name of what a node gives
    for product in [node for node in graph.node if node.op_type == "MatMulInteger"]:
        (cast,) = readers[product.output[0]]
        (scaled,) = readers[cast.output[0]]
        scale = maker[next(name for name in scaled.input if name != cast.output[0])]
        last, bias = scaled, ""
        after = [] if scaled.output[0] in given_out else readers.get(scaled.output[0], [])
        if len(after) == 1 and after[0].op_type == "Add":
            other = next((name for name in after[0].input if name != scaled.output[0]), "")
            if weights.get(other) == weights[product.input[1]][1:]:
                last, bias = after[0], other
        values, weight, *zeros = product.input
        given = [values, weight, *scale.input, *zeros, *([bias] if bias else [])]
        fused[last.output[0]] = helper.make_node(
            "MatMulIntegerToFloat", given, list(last.output), name=product.name, domain="com.microsoft"
        )
        gone |= {node.output[0] for node in (product, cast, scale, scaled, last)}
    kept = [fused.get(node.output[0], node) for node in graph.node if node.output[0] not in gone - set(fused)]
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _transposed(node: Any) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _by_input(node: Any, matrix: NDArray[Any]) -> NDArray[Any]:
    """Return the weights with a row for each input, or, of such weights, those that the node reads."""
    return matrix.T if _transposed(node) else matrix
