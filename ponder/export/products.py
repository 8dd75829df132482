"""The products of a graph of ONNX that multiply with a matrix of weights."""

from __future__ import annotations

from typing import Any

__all__ = ["narrowing", "products"]


def products(graph: Any) -> list[tuple[Any, tuple[int, int]]]:
    """The nodes that multiply with a matrix of weights, each with how many inputs and outputs that has."""
    shapes = {weight.name: list(weight.dims) for weight in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and len(shapes.get(node.input[1], ())) == 2:
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            inputs, outputs = shapes[node.input[1]][:: -1 if transposed else 1]
            found.append((node, (inputs, outputs)))
    return found


def narrowing(graph: Any) -> list[str]:
    """Names of the products whose weights have more inputs than outputs."""
    return [node.name for node, (inputs, outputs) in products(graph) if inputs > outputs]
