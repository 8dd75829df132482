"""Eight bits for the matrix products of a step.

Weights are quantised with a scale for each output channel, activations with one for each tensor:
either the range that each call finds, or a fixed one with SmoothQuant. Embeddings, norms, readouts,
heads, the Lambda head and the policy are not part of a step's graph and stay in fp32: they cost
little and decide the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ponder._utils.checks import library
from ponder.deploy.runtime import OnnxModel
from ponder.deploy.sessions import Array, Graph
from ponder.errors import ArgumentError

__all__ = ["Channels", "quantize", "ranges_of"]

onnx: Any = library("onnx", "quantising", "cli")
helper = onnx.helper
numpy_helper = onnx.numpy_helper

Proto: TypeAlias = Any
"""A graph, a node or a model of ONNX, whose classes have no stubs."""

Channels = Mapping[str, tuple[Array, Array]]
"""The lowest and the highest value of each channel, `(channels,)` each, by the tensor's name."""

# α of SmoothQuant: near the best on MiniLM and MPNet.
_STRENGTH = 0.75
# Weights have 7 bits: processors without VNNI add pairs of products in 16 bits, where 8 overflow.
_LARGEST = 64


def quantize(path: Path, everything: bool, channels: Channels | None = None) -> None:
    """Quantise the products with weights in a graph, in place.

    A product with more inputs than outputs (the second of a feed-forward block) reads activations
    of which a few are far larger than all others. One scale for all of them leaves few levels for
    the others, so such products stay in fp32 unless `everything` is true.

    Args:
        path: The graph.
        everything: Quantise these products too: faster, if the accuracy of the model allows it.
        channels: The ranges of what the products read, on examples. If None, each call computes its
            own ranges, and a row's output depends slightly on the other rows of its batch.
    """
    model = onnx.load(str(path))
    graph = model.graph
    products = [each for each in _products(graph) if everything or not each.narrows]
    by_input: dict[str, list[_Product]] = {}
    for product in products:
        by_input.setdefault(product.node.input[0], []).append(product)
    # All products of one input are replaced at the place of the first of them.
    replacements = {
        together[0].node.output[0]: _integer_products(graph, name, together, channels)
        for name, together in by_input.items()
    }
    replaced = {node.output[0] for each in products for node in (each.node, each.last)}
    nodes: list[Proto] = []
    for node in graph.node:
        name = node.output[0]
        if name in replacements:
            nodes += replacements[name]
        elif name not in replaced:
            nodes.append(node)
    onnx.save(_with_nodes(model, nodes), str(path))


def _with_nodes(model: Proto, nodes: Sequence[Proto]) -> Proto:
    """Return a copy of a model with other nodes, and the weights that they read."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    del copied.graph.node[:]
    copied.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    del copied.graph.initializer[:]
    copied.graph.initializer.extend(
        [weight for weight in model.graph.initializer if weight.name in read]
    )
    copied.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return copied


def ranges_of(folder: Path, examples: Any) -> list[Channels]:
    """Return the range of every channel that quantised products read, for each step, at full depth.

    Args:
        folder: An export in fp32.
        examples: Examples as for `OnnxModel.predict`.

    Raises:
        ArgumentError: A value is not finite.
    """
    model = OnnxModel(folder)
    watched = {name: _Watched(folder / f"{name}.onnx") for name in model.manifest.steps}
    model.graphs |= watched
    model.record(examples)
    ends = [end for graph in watched.values() for pair in graph.ranges.values() for end in pair]
    if not all(np.isfinite(end).all() for end in ends):
        raise ArgumentError(
            "calibration",
            expected="examples on which every value is finite",
            got="an example that leads to NaN or infinity",
            remedy="Pass some hundred examples like those to come.",
        )
    return [graph.ranges for graph in watched.values()]


class _Watched(Graph):
    """The graph of a step, which records the ranges of the tensors that its products read."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(str(path))
        outer = {value.name for value in (*model.graph.input, *model.graph.output)}
        self._names = sorted({product.node.input[0] for product in _products(model.graph)})
        inner = [name for name in self._names if name not in outer]
        model.graph.output.extend(
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in inner]
        )
        super().__init__(model.SerializeToString())
        self.ranges: dict[str, tuple[Array, Array]] = {}

    def __call__(self, arrays: Any) -> dict[str, Array]:
        outputs = super().__call__(arrays)
        for name in self._names:
            value = outputs[name] if name in outputs else arrays[name]
            rows = value.reshape(-1, value.shape[-1])
            low, high = self.ranges.get(name, (np.inf, -np.inf))
            self.ranges[name] = (
                np.minimum(low, rows.min(axis=0)),
                np.maximum(high, rows.max(axis=0)),
            )
        return outputs


@dataclass(frozen=True, eq=False)
class _Product:
    """A product with a matrix of weights.

    Args:
        node: The product.
        matrix: The weights, `(inputs, outputs)`.
        bias: The name of the bias that is added; empty without a bias.
        last: The node whose output is the sum. Of a Gemm it is the product itself, of a MatMul with
            a bias the Add that follows.
    """

    node: Proto
    matrix: Array
    bias: str
    last: Proto

    @property
    def narrows(self) -> bool:
        """Whether the product has more inputs than outputs."""
        return int(self.matrix.shape[0]) > int(self.matrix.shape[1])


def _products(graph: Proto) -> list[_Product]:
    """Return the plain products with weights in a graph: inputs × matrix, plus a bias or not."""
    arrays = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    products: list[_Product] = []
    for node in graph.node:
        if node.op_type == "MatMul":
            product = _matmul(graph, node, arrays)
        elif node.op_type == "Gemm":
            product = _gemm(node, arrays)
        else:
            product = None
        if product is not None:
            products.append(product)
    return products


def _matmul(graph: Proto, node: Proto, arrays: Mapping[str, Array]) -> _Product | None:
    """Return a MatMul, with the bias that the node after it adds, if it multiplies by weights."""
    matrix = arrays.get(node.input[1])
    if matrix is None or matrix.ndim != 2:
        return None
    name = node.output[0]
    readers = [other for other in graph.node if name in other.input]
    is_output = name in {value.name for value in graph.output}
    if [reader.op_type for reader in readers] == ["Add"] and not is_output:
        other = next((each for each in readers[0].input if each != name), "")
        if _is_bias(arrays.get(other), matrix):
            return _Product(node, matrix, other, readers[0])
    return _Product(node, matrix, "", node)


def _gemm(node: Proto, arrays: Mapping[str, Array]) -> _Product | None:
    """Return a Gemm without factors, if it multiplies by weights and adds a bias or nothing."""
    matrix = arrays.get(node.input[1])
    if matrix is None or matrix.ndim != 2:
        return None
    options = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    options |= {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if options["transB"]:
        matrix = matrix.T
    bias = node.input[2] if len(node.input) > 2 else ""
    is_plain = options["alpha"] == 1.0 and options["beta"] == 1.0 and not options["transA"]
    if not is_plain or (bias and not _is_bias(arrays.get(bias), matrix)):
        return None
    return _Product(node, matrix, bias, node)


def _is_bias(array: Array | None, matrix: Array) -> bool:
    return array is not None and array.shape == matrix.shape[1:]


def _integer_products(
    graph: Proto, name: str, products: Sequence[_Product], channels: Channels | None
) -> list[Proto]:
    """Return the nodes that replace the products of one tensor; the graph gets their initialisers.

    Args:
        graph: The graph.
        name: The tensor that the products read.
        products: The products.
        channels: The ranges of the channels of all tensors; None computes one range in each call.
    """
    quantized = _Quantized.of(name)
    factors = np.ones(products[0].matrix.shape[0], dtype=np.float32)
    if channels is None:
        outputs = [quantized.values, quantized.scale, quantized.zero]
        nodes = [helper.make_node("DynamicQuantizeLinear", [name], outputs)]
    else:
        low, high = channels[name]
        largest = np.maximum(np.abs(low), np.abs(high))
        factors = _factors(largest, [product.matrix for product in products])
        nodes = _fixed_ranges(graph, name, quantized, low / factors, high / factors, factors)
    for number, product in enumerate(products):
        matrix = factors[:, None] * product.matrix
        scales = np.abs(matrix).max(axis=0) / np.float32(_LARGEST)
        scales[scales == 0] = 1.0
        integers = np.clip(np.rint(matrix / scales), -_LARGEST, _LARGEST).astype(np.int8)
        weights = _constant(graph, integers, f"{quantized.values}.weights.{number}")
        weight_scales = _constant(graph, scales, f"{quantized.scale}.weights.{number}")
        inputs = [quantized.values, weights, quantized.scale, weight_scales, quantized.zero]
        inputs += ["", product.bias]  # weights are symmetric, so that their zero point is left out
        outputs = product.last.output
        nodes.append(
            helper.make_node("MatMulIntegerToFloat", inputs, outputs, domain="com.microsoft")
        )
    return nodes


@dataclass(frozen=True)
class _Quantized:
    """The names of a tensor in eight bits: its integers, their scale, and their zero point."""

    values: str
    scale: str
    zero: str

    @classmethod
    def of(cls, name: str) -> _Quantized:
        return cls(f"{name}.quantized", f"{name}.scale", f"{name}.zero")


def _fixed_ranges(
    graph: Proto, name: str, quantized: _Quantized, low: Array, high: Array, factors: Array
) -> list[Proto]:
    """Return the nodes that divide a tensor by factors, and quantise it with one fixed range."""
    least = min(float(low.min()), 0.0)  # the range includes 0, which is then exact
    most = max(float(high.max()), 0.0)
    step = np.float32((most - least) / 255.0 or 1.0)
    zero = np.uint8(np.clip(np.rint(-least / step), 0, 255))
    inverse = _constant(graph, np.float32(1.0) / factors, f"{name}.smoothing")
    smoothed = f"{name}.smoothed"
    scale_and_zero = [
        _constant(graph, step, quantized.scale),
        _constant(graph, zero, quantized.zero),
    ]
    return [
        helper.make_node("Mul", [name, inverse], [smoothed]),
        helper.make_node("QuantizeLinear", [smoothed, *scale_and_zero], [quantized.values]),
    ]


def _constant(graph: Proto, array: Any, name: str) -> str:
    """Add an initialiser to a graph, and return its name."""
    graph.initializer.append(numpy_helper.from_array(np.array(array), name))
    return name


def _factors(of_inputs: Array, matrices: Sequence[Array]) -> Array:
    r"""Return the factor of SmoothQuant for each channel (Xiao et al. 2023, Eq. 4).

    s_j = max|X_j|^α / max|W_j|^(1−α), X W = (X diag(s)⁻¹) (diag(s) W): activations, which have
    one scale for all channels, are divided by the factors, and the rows of the weights, which have
    a scale for each output, are multiplied by them.

    Args:
        of_inputs: The largest absolute value of each channel, `(channels,)`.
        matrices: The weights that read the channels, `(channels, outputs)` each.
    """
    of_weights = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    is_used = (of_inputs > 0) & (of_weights > 0)
    factors = np.ones_like(of_inputs, dtype=np.float32)
    factors[is_used] = of_inputs[is_used] ** _STRENGTH / of_weights[is_used] ** (1.0 - _STRENGTH)
    return factors
