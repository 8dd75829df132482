"""Exports in tests take half the time, and their sessions one thread.

PyTorch reads its table of ONNX operators anew for every graph, a third of the time: here once. And by default all cores
wait for the work of a session in a loop, which costs more than the work.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["make_exports_quick", "single_thread_session"]


@cache
def make_exports_quick() -> None:
    """From now on, for this process; the table changes only by custom operators, which no test has."""
    from torch.onnx._internal.exporter import _registration

    registry: Any = _registration.ONNXRegistry
    if hasattr(registry, "from_torchlib"):
        registry.from_torchlib = staticmethod(cache(registry.from_torchlib))


def single_thread_session(path: Path) -> Any:
    """A graph as onnxruntime runs it, without `ponder`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)
