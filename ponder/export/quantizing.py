"""Quantisation to 8 bits: onnxruntime's, of the matrix products of a graph; dynamic, or static by given ranges."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ponder.errors import PonderError
from ponder.export.products import narrowing, others
from ponder.export.smoothing import Channels, smooth

__all__ = ["quantize"]


def quantize(path: Path, everything: bool, channels: Channels | None = None) -> int:
    """Quantise the products with weights in a graph, in place; the file is replaced when the new one is complete.

    Weights are quantised once, a scale for each output channel, and activations by one scale for each tensor. Where
    `channels` are given, it is fixed by them, after channels that are far larger than others have passed their size on
    to the weights (`ponder.export.smoothing`). Else it is looked for at each call, and a row's output depends a little
    on the rows beside it. Embeddings, norms, readouts, heads and the Lambda head are no part of a step's graph and stay
    as they are: they cost little and decide the answer. Weights use 7 bits of the 8: processors without VNNI add pairs
    of products in 16 bits, which overflow otherwise and ruin hidden states without a word.

    With fixed ranges a product, its scale and its bias become one operation of onnxruntime's own,
    `MatMulIntegerToFloat`, which is faster. Where ranges are looked for, onnxruntime joins them
    itself when it reads the graph.

    A product that has more inputs than outputs, the second of a feed-forward block, reads activations of which a few
    are far larger than all others; one scale for all of them leaves little of the rest (on MPNet-base the cosine of the
    last hidden states with fp32 is 0.90 with it quantised, and 0.99 without).

    Args:
        path: The graph.
        everything: Quantise these products too: faster, where the model bears it.
        channels: What all products read on examples; None to look for it at each call.

    Returns:
        How many products are of integers now.

    Raises:
        PonderError: onnxruntime or onnx is not installed.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise PonderError("int8 needs onnx and onnxruntime: pip install 'ponder-torch[onnx]'.") from error
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.{os.getpid()}-", dir=path.parent)
    os.close(handle)
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it logs advice on preparing the graph, which needs none
    try:
        model = onnx.load(str(path))
        del model.graph.value_info[:]  # the quantiser infers shapes itself, and stumbles over the exporter's
        kept = [*others(model.graph), *([] if everything else narrowing(model.graph))]
        ranges = None if channels is None else smooth(model.graph, channels, kept)
        quantize_dynamic(
            model,
            name,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*kept, *(f"{name}_MatMul" for name in kept)],  # as onnxruntime calls what Gemm becomes
        )
        made = onnx.load(name)
        count: int = sum(node.op_type == "MatMulInteger" for node in made.graph.node)
        if ranges is not None:
            _fix(made.graph, ranges)
            _fuse(made)
            onnx.save(made, name)
        os.chmod(name, 0o644)
        os.replace(name, path)
        return count
    finally:
        logging.root.setLevel(before)
        Path(name).unlink(missing_ok=True)


def _fix(graph: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Give the activations of a dynamically quantised graph the scales of these ranges, in which 0 is exact."""
    from onnx import helper, numpy_helper

    for place, node in enumerate(graph.node):
        if node.op_type != "DynamicQuantizeLinear":
            continue
        low, high = ranges[node.input[0]]
        low, high = min(low, 0.0), max(high, 0.0)
        scale = np.float32((high - low) / 255.0 or 1.0)
        zero = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
        values, scale_name, zero_name = node.output
        graph.initializer.extend(
            [numpy_helper.from_array(np.array(value), name) for value, name in ((scale, scale_name), (zero, zero_name))]
        )
        made = helper.make_node("QuantizeLinear", [node.input[0], scale_name, zero_name], [values], name=node.name)
        graph.node[place].CopyFrom(made)


def _fuse(model: Any) -> None:
    """Join each product in integers with what makes numbers of it: type, scale and, where there is one, bias."""
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
