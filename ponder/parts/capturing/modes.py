"""What a module's own code sets around others, gradients and autocast: noted where they are called, and set again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

__all__ = ["Mode", "mode_now", "other_mode"]


class Mode(NamedTuple):
    """Whether gradients are made, and what autocast does.

    Args:
        gradients: Whether they are made.
        device: The kind of device of which autocast is told.
        dtype: What autocast casts to; None where it is off.
    """

    gradients: bool
    device: str
    dtype: torch.dtype | None

    def run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call it in this mode."""
        autocast = torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype is not None)
        with torch.set_grad_enabled(self.gradients), autocast:
            return call(*args, **kwargs)


def mode_now(tensor: Tensor) -> Mode:
    """The mode that holds now, for modules on the device of `tensor`."""
    device = tensor.device.type
    return _mode(device if torch.amp.is_autocast_available(device) else "cpu")


def other_mode(before: Mode) -> Mode | None:
    """The mode that holds now, if it is another than `before`.

    The forward of an autograd function, reentrant activation checkpointing, say, makes no gradients, and its backward
    does: they count as they were.
    """
    mode = _mode(before.device)
    if mode.gradients != before.gradients and _in_autograd_function():
        mode = mode._replace(gradients=before.gradients)
    return None if mode == before else mode


def _mode(device: str) -> Mode:
    on = torch.is_autocast_enabled(device)
    return Mode(torch.is_grad_enabled(), device, torch.get_autocast_dtype(device) if on else None)


def _in_autograd_function() -> bool:
    frame: FrameType | None = None if torch.compiler.is_compiling() else sys._getframe(1)
    while frame is not None:
        names = frame.f_code.co_varnames
        if frame.f_code.co_name == "forward" and names and isinstance(frame.f_locals.get(names[0]), FunctionCtx):
            return True
        frame = frame.f_back
    return False
