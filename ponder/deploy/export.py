"""Export to ONNX, `ponder.export`: `onnx` writes a model, `OnnxModel` runs it without PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ponder.deploy.exporting import ExportSource, onnx, quantized
    from ponder.deploy.runtime import OnnxModel

__all__ = ["ExportSource", "OnnxModel", "onnx", "quantized"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = "runtime" if name == "OnnxModel" else "exporting"
        value = globals()[name] = getattr(import_module(f"ponder.deploy.{home}"), name)
        return value
