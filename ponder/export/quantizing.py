"""Quantisation to 8 bits: onnxruntime's dynamic one, of the matrix products of a graph."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from ponder.errors import PonderError

__all__ = ["quantize"]


def quantize(path: Path) -> None:
    """Quantise the products with weights in a graph, in place; the file is replaced when the new one is complete.

    Weights are quantised once, a scale for each output channel, and activations at each call, a scale for each tensor.
    Embeddings, norms, readouts, heads and the Lambda head are no part of a step's graph and stay as they are: they cost
    little and decide the answer. Weights use 7 bits of the 8: processors without VNNI add pairs of products in 16
    bits, which overflow otherwise and ruin hidden states without a word.

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
        quantize_dynamic(
            _without_shapes(onnx.load(str(path))),
            name,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        logging.root.setLevel(before)
        Path(name).unlink(missing_ok=True)


def _without_shapes(model: Any) -> Any:
    """The graph without the shapes that the exporter noted inside; the quantiser infers them itself."""
    del model.graph.value_info[:]
    return model
