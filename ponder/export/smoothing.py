"""SmoothQuant (Xiao et al. 2023, arXiv 2211.10438): channels far larger than others pass their size on to weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder.export.products import products

__all__ = ["Channels", "smooth"]

Channels = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]
"""By tensor, the lowest and the highest value of each channel, `(channels,)` each."""


def smooth(
    graph: Any, channels: Channels, kept: Collection[str] = (), strength: float = 0.75
) -> dict[str, tuple[float, float]]:
    r"""Divide what products read by a factor a channel, and multiply the rows of their weights with it; in place.

    s_j = max|X_j|^α / max|W_j|^(1−α) (Eq. 4), where products that read the same tensor share their factors. The graph
    computes what it did: X W = (X diag(s)⁻¹) (diag(s) W). But one scale then does for all channels of the activations,
    and what was large there is in weights that have a scale for each output.

    Args:
        graph: The graph, of ONNX.
        channels: What the products read on examples.
        kept: Names of the products that stay as they are.
        strength: α, in [0, 1]: the higher, the more the weights take over. 0.75 was near the best on MiniLM and MPNet.

    Returns:
        The lowest and the highest value on these examples, by the name of the tensor that a product reads now.
    """
    from onnx import helper, numpy_helper

    weights = {weight.name: weight for weight in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node, _ in products(graph):
        if node.name not in kept and sum(node.input[1] in other.input for other in graph.node) == 1:
            readers.setdefault(node.input[0], []).append(node)
    ranges = {name: (float(low.min()), float(high.max())) for name, (low, high) in channels.items()}
    for name, nodes in readers.items():
        low, high = channels[name]
        matrices = [_by_input(node, numpy_helper.to_array(weights[node.input[1]])) for node in nodes]
        of_weights = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
        of_inputs = np.maximum(np.abs(low), np.abs(high))
        sound = (of_inputs > 0) & (of_weights > 0)
        factors = np.ones_like(of_inputs, dtype=np.float32)
        factors[sound] = of_inputs[sound] ** strength / of_weights[sound] ** (1.0 - strength)
        divided, inverse = f"{name}.smoothed", f"{name}.smoothing"
        for node, matrix in zip(nodes, matrices, strict=True):
            scaled = _by_input(node, factors[:, None] * matrix)
            weights[node.input[1]].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(scaled), node.input[1]))
            node.input[0] = divided
        graph.initializer.append(numpy_helper.from_array(np.float32(1.0) / factors, inverse))
        place = min(place for place, node in enumerate(graph.node) if divided in node.input)
        graph.node.insert(place, helper.make_node("Mul", [name, inverse], [divided], name=divided))
        ranges[divided] = float((low / factors).min()), float((high / factors).max())
    return ranges


def _by_input(node: Any, matrix: NDArray[Any]) -> NDArray[Any]:
    """The weights with a row for each input, or, of such weights, those that the node reads."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return matrix.T if transposed else matrix
