"""A file that stops: models as ONNX graphs that exit early, answered without PyTorch.

`OnnxModel` needs numpy, onnxruntime and, for texts, tokenizers; what writes and certifies needs PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ponder.export.certifying import certify, to_trajectory
    from ponder.export.runtime import Answers, OnnxModel, Record
    from ponder.export.writing import onnx, quantized

__all__ = ["Answers", "OnnxModel", "Record", "certify", "onnx", "quantized", "to_trajectory"]

_HOMES = {
    "Answers": "runtime",
    "OnnxModel": "runtime",
    "Record": "runtime",
    "certify": "certifying",
    "onnx": "writing",
    "quantized": "writing",
    "to_trajectory": "certifying",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
