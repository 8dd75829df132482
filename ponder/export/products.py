"""The products of a graph of ONNX that multiply with a matrix of weights."""

from __future__ import annotations

from typing import Any

__all__ = ["narrowing", "others", "products"]


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


def others(graph: Any) -> list[str]:
    """Names of the products that are left alone: with no matrix of weights, or with a bias of another length.

    onnxruntime quantises products with constants of any shape, and its kernels then fail on these when they run.
    """
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    of_weights = {node.name: outputs for node, (_, outputs) in products(graph)}
    made = {node.output[0]: node for node in graph.node if node.op_type in ("MatMul", "Gemm")}
    odd = [node.name for node in made.values() if node.name not in of_weights]
    for node in graph.node:
        if node.op_type == "Add":
            product = next((made[name] for name in node.input if name in made), None)
            bias = next((shapes[name] for name in node.input if name in shapes), None)
            if product is not None and bias is not None and len(bias) == 1:
                odd += [product.name] if bias != (of_weights.get(product.name),) else []
    return odd
