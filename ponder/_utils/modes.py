"""Evaluation mode for the length of a block, in any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ponder.errors import ArgumentError

__all__ = ["check_evaluating", "evaluating", "evaluating_called"]


@dataclass
class _Hold:
    """How many blocks hold a module in evaluation mode, and the mode that it had before the first."""

    mode: bool
    blocks: int = 0


_holds: dict[int, _Hold] = {}
_lock = threading.Lock()


def check_evaluating(model: nn.Module) -> None:
    """Refuse to answer with a model in training mode: dropout is on, and no row exits."""
    if model.training:
        raise ArgumentError(
            "model",
            expected="a model in evaluation mode",
            got="one in training mode",
            remedy="Call model.eval() first.",
        )


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


@contextmanager
def evaluating_called() -> Iterator[list[nn.Module]]:
    """Evaluation mode for whatever this thread calls within the block; gives the list of that, each with its parts.

    It needs not be known who calls what, and by which ways. Modes come back at the end, as after `evaluating`.
    """
    thread, found = threading.get_ident(), list[nn.Module]()
    with ExitStack() as held:

        def hold(module: nn.Module, inputs: Any) -> None:
            if threading.get_ident() != thread or any(module is part for known in found for part in known.modules()):
                return
            held.enter_context(evaluating(module))
            found.append(module)

        held.callback(register_module_forward_pre_hook(hold).remove)
        yield found
