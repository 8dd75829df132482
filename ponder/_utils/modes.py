"""Evaluation mode inside a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

__all__ = ["HasModes", "evaluating"]


class HasModes(Protocol):
    """The part of an `nn.Module` that switches modes."""

    def modules(self) -> Iterator[nn.Module]:
        """Yield the modules inside, the outermost first."""

    def eval(self) -> object:
        """Switch to evaluation mode."""


@contextmanager
def evaluating(model: HasModes) -> Iterator[None]:
    """Run a block in evaluation mode and without gradients, and restore the mode of every module.

    Modules may differ in mode: frozen ones stay in evaluation mode while others are trained.
    """
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
