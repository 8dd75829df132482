"""Exports in tests: PyTorch reads its table of ONNX operators anew for every graph, a third of the time; here once."""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["read_operators_once"]


@cache
def read_operators_once() -> None:
    """From now on, this process keeps the table; it changes only by custom operators, which no test has."""
    from torch.onnx._internal.exporter import _registration

    registry: Any = _registration.ONNXRegistry
    if hasattr(registry, "from_torchlib"):
        registry.from_torchlib = staticmethod(cache(registry.from_torchlib))
