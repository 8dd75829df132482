"""Evaluation mode for the length of a block, in any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

__all__ = ["evaluating"]


@dataclass
class _Hold:
    """How many blocks hold a module in evaluation mode, and the mode that it had before the first."""

    mode: bool
    blocks: int = 0


_holds: dict[int, _Hold] = {}
_lock = threading.Lock()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module below `module` has its own mode again.

    Blocks may overlap, in one thread or in several, on the same module or on parts of it: a module gets its mode back
    when the last block that holds it ends, so that none runs in training mode because another has ended.
    """
    parts = list(module.modules())
    with _lock:
        for part in parts:
            _holds.setdefault(id(part), _Hold(part.training)).blocks += 1
    try:
        with _lock:
            module.eval()
        yield
    finally:
        with _lock:
            for part in parts:
                hold = _holds[id(part)]
                hold.blocks -= 1
                if not hold.blocks:
                    part.training = _holds.pop(id(part)).mode
