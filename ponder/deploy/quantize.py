"""Eight bits for the matrix products of a step, with ranges that each call looks for, or fixed ones with SmoothQuant.

Weights are quantised with a scale for each output channel, activations with one for each tensor.
Embeddings, norms, readouts, heads, the Lambda head and the policy are no part of a step's graph and
stay as they are: they cost little and decide the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder._utils.checks import library
from ponder.deploy.runtime import Graph, OnnxModel
from ponder.errors import ArgumentError

__all__ = ["quantize", "ranges_of"]

onnx: Any = library("onnx", "quantising", "cli")
helper = onnx.helper
numpy_helper = onnx.numpy_helper

Array = NDArray[Any]
Channels = Mapping[str, tuple[Array, Array]]
"""The lowest and the highest value of each channel of the tensors that products read, `(channels,)` each, by name."""

_STRENGTH = 0.75  # α of SmoothQuant: near the best on MiniLM and MPNet
_LARGEST = 64  # 7 bits of weights: processors without VNNI add pairs of products in 16 bits, which overflow otherwise


def quantize(path: Path, everything: bool, channels: Channels | None = None) -> None:
    """Quantise the products with weights in a graph, in place.

    A product that has more inputs than outputs, the second of a feed-forward block, reads
    activations of which a few are far larger than all others; one scale for all of them leaves
    little of the rest.

    Args:
        path: The graph.
        everything: Quantise these products too: faster, where the model bears it.
        channels: Values of what all products read, on examples, by which ranges are fixed; where
            None, each call looks for its own, and a row's output depends a little on the rows
            beside it.
    """
    model = onnx.load(str(path))
    graph = model.graph
    products = [
        each
        for each in _products(graph)
        if everything or each.matrix.shape[0] <= each.matrix.shape[1]
    ]
    of_tensor: dict[str, list[_Product]] = {}
    for product in products:
        of_tensor.setdefault(product.node.input[0], []).append(product)
    integer = {
        own[0].node.output[0]: _integer_products(graph, name, own, channels)
        for name, own in of_tensor.items()
    }
    gone = {node.output[0] for each in products for node in (each.node, each.last)}
    nodes = [
        integer.get(node.output[0], [] if node.output[0] in gone else [node]) for node in graph.node
    ]
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    made.graph.node.extend([node for some in nodes for node in some])
    read = {name for node in made.graph.node for name in node.input}
    del made.graph.initializer[:]
    made.graph.initializer.extend([weight for weight in graph.initializer if weight.name in read])
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(made, str(path))


def ranges_of(folder: Path, examples: Any) -> list[Channels]:
    """Return the range of every channel that products with weights read, for each graph of the steps, at full depth.

    Args:
        folder: An export in fp32.
        examples: Examples as for `OnnxModel.predict`.
    """
    model = OnnxModel(folder)
    watched = {name: _Watched(folder / f"{name}.onnx") for name in model.manifest.steps}
    model._graphs = {**model._graphs, **watched}
    model.record(examples)
    if not all(
        np.isfinite(end).all()
        for graph in watched.values()
        for pair in graph.ranges.values()
        for end in pair
    ):
        expected = "examples on which every value is finite"
        remedy = "Pass some hundred examples like those to come."
        raise ArgumentError(
            "calibration",
            expected=expected,
            got="one with NaN or infinity on its way",
            remedy=remedy,
        )
    return [graph.ranges for graph in watched.values()]


class _Watched(Graph):
    """A graph of a step that notes the ranges of what its products read."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(str(path))
        given = {value.name for value in (*model.graph.input, *model.graph.output)}
        self._names = sorted({product.node.input[0] for product in _products(model.graph)})
        inner = [name for name in self._names if name not in given]
        model.graph.output.extend(
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in inner]
        )
        super().__init__(model.SerializeToString())
        self.ranges: dict[str, tuple[Array, Array]] = {}

    def __call__(self, arrays: Any) -> dict[str, Array]:
        found = super().__call__(arrays)
        for name in self._names:
            value = found[name] if name in found else arrays[name]
            rows = value.reshape(-1, value.shape[-1])
            low, high = self.ranges.get(name, (np.inf, -np.inf))
            self.ranges[name] = (
                np.minimum(low, rows.min(axis=0)),
                np.maximum(high, rows.max(axis=0)),
            )
        return found


@dataclass(frozen=True, eq=False)
class _Product:
    """A product with a matrix of weights, `(inputs, outputs)`, and the bias that is added to it, by its name."""

    node: Any
    matrix: Array
    bias: str
    last: Any  # the node that gives the sum: of a MatMul it is another one


def _products(graph: Any) -> list[_Product]:
    arrays = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    given_out = {value.name for value in graph.output}
    found = list[_Product]()
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or np.ndim(arrays.get(node.input[1], ())) != 2:
            continue
        options = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}  # of a Gemm
        options |= {each.name: helper.get_attribute_value(each) for each in node.attribute}
        matrix = arrays[node.input[1]].T if options.pop("transB") else arrays[node.input[1]]
        last = node
        bias = "".join(node.input[2:3])
        after = [other for other in graph.node if node.output[0] in other.input]
        if (
            node.op_type == "MatMul"
            and [a.op_type for a in after] == ["Add"]
            and node.output[0] not in given_out
        ):
            other = next((name for name in after[0].input if name != node.output[0]), "")
            if np.shape(arrays.get(other, ())) == matrix.shape[1:]:
                last = after[0]
                bias = other
        if list(options.values()) == [1.0, 1.0, 0] and (
            not bias or np.shape(arrays.get(bias, ())) == matrix.shape[1:]
        ):
            found.append(_Product(node, matrix, bias, last))
    return found


def _integer_products(
    graph: Any, name: str, products: Sequence[_Product], channels: Channels | None
) -> list[Any]:
    r"""Return nodes in the place of the products that read one tensor; their numbers become initialisers of the graph.

    With ranges of its channels the tensor is divided by a factor a channel, and the rows of the
    weights are multiplied by it (SmoothQuant, Xiao et al. 2023, Eq. 4): s_j = max|X_j|^α /
    max|W_j|^(1−α), X W = (X diag(s)⁻¹) (diag(s) W). What was large in a channel of the activations,
    which have one scale, is then in weights that have one for each output.
    """

    def constant(array: Any, of: str) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(array), of))
        return of

    quantized = f"{name}.quantized"
    scale = f"{name}.scale"
    zero = f"{name}.zero"
    factors = np.ones(products[0].matrix.shape[0], dtype=np.float32)
    if channels is None:
        nodes = [helper.make_node("DynamicQuantizeLinear", [name], [quantized, scale, zero])]
    else:
        low, high = channels[name]
        factors = _factors(
            np.maximum(np.abs(low), np.abs(high)), [product.matrix for product in products]
        )
        least = min(float((low / factors).min()), 0.0)
        most = max(float((high / factors).max()), 0.0)  # 0 is exact
        step = np.float32((most - least) / 255.0 or 1.0)
        rest = np.uint8(np.clip(np.rint(-least / step), 0, 255))
        divided = f"{name}.smoothed"
        nodes = [
            helper.make_node(
                "Mul", [name, constant(np.float32(1.0) / factors, f"{name}.smoothing")], [divided]
            ),
            helper.make_node(
                "QuantizeLinear",
                [divided, constant(step, scale), constant(rest, zero)],
                [quantized],
            ),
        ]
    for number, product in enumerate(products):
        matrix = factors[:, None] * product.matrix
        scales = np.abs(matrix).max(axis=0) / np.float32(_LARGEST)
        scales[scales == 0] = 1.0
        whole = np.clip(np.rint(matrix / scales), -_LARGEST, _LARGEST).astype(np.int8)
        weights = [
            constant(whole, f"{quantized}.weights.{number}"),
            constant(scales, f"{scale}.weights.{number}"),
        ]
        given = [quantized, weights[0], scale, weights[1], zero, "", product.bias]
        nodes.append(
            helper.make_node(
                "MatMulIntegerToFloat", given, product.last.output, domain="com.microsoft"
            )
        )
    return nodes


def _factors(of_inputs: Array, matrices: Sequence[Array]) -> Array:
    """Return the factor of SmoothQuant for each channel, by its largest value, and by the weights that read it."""
    of_weights = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    sound = (of_inputs > 0) & (of_weights > 0)
    factors = np.ones_like(of_inputs, dtype=np.float32)
    factors[sound] = of_inputs[sound] ** _STRENGTH / of_weights[sound] ** (1.0 - _STRENGTH)
    return factors
