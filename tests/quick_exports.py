"""Exports in tests take half the time, and their sessions one thread.

PyTorch reads its table of ONNX operators anew for every graph, a third of the time: here once. Lines of PyTorch's own
code are stepped through where lines are counted, half as long again: here not. And by default all cores wait for the
work of a session in a loop, which costs more than the work.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["make_exports_quick", "single_thread_session"]


@cache
def make_exports_quick() -> None:
    """From now on, for this process; the table changes only by custom operators, which no test has."""
    from torch.onnx._internal.exporter import _registration

    registry: Any = _registration.ONNXRegistry
    if hasattr(registry, "from_torchlib"):
        registry.from_torchlib = staticmethod(cache(registry.from_torchlib))
    export = torch.onnx.export

    def uncounted(*arguments: Any, **options: Any) -> Any:
        tracing = sys.gettrace()
        sys.settrace(None)
        try:
            return export(*arguments, **options)
        finally:
            sys.settrace(tracing)

    torch.onnx.export = uncounted


def single_thread_session(path: Path) -> Any:
    """A graph as onnxruntime runs it, without `ponder`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)
