"""The loss at a drawn depth, from a state some steps in: progressive loss, and backpropagation cut short."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.errors import ArgumentError
from ponder.objectives.base import Objective, Unrolled, registry

__all__ = ["Depth", "RandomDepth"]


@dataclass(frozen=True)
class Depth:
    """How deep one training batch goes.

    Args:
        warm_up: Steps that run first, without a gradient.
        steps: Steps that follow, with one, ≥ 1.
    """

    warm_up: int
    steps: int

    @property
    def total(self) -> int:
        """All steps."""
        return self.warm_up + self.steps


@registry.register("random-depth")
@dataclass(frozen=True)
class RandomDepth(Objective):
    r"""ℓ_{k+n}, with k steps without gradient and then n steps with one, both drawn anew for every batch.

    k is uniform on 0..`warm_up` and n uniform on `minimum`..min(`maximum`, N − k), so that no run is deeper than N.
    A step that is trained to go on from any state that it has made itself, without knowing how many steps came before,
    goes on to improve the answer where it is run for longer than in training. With `warm_up` = N − 1 and `minimum` = 1
    this is the progressive loss of Bansal et al. 2022 (arXiv 2202.05826, Section 3.2). A small `maximum` cuts
    backpropagation through steps short: memory and time of the backward pass do not grow with N.

    Only steps that share their weights can be trained so, and the loss says nothing about hazards.

    Args:
        minimum: Fewest steps with a gradient, ≥ 1.
        maximum: Most steps with a gradient, at least `minimum`; N where None.
        warm_up: Most steps without a gradient, ≥ 0.
    """

    minimum: int = 1
    maximum: int | None = None
    warm_up: int = 0

    def __post_init__(self) -> None:
        top = self.minimum if self.maximum is None else self.maximum
        for argument, value, least in (("minimum", self.minimum, 1), ("maximum", top, self.minimum)):
            _check_count(argument, value, least)
        _check_count("warm_up", self.warm_up, 0)

    def draw(self, num_steps: int) -> Depth:
        """A depth for a model of `num_steps` steps, from PyTorch's global generator."""
        warm_up = int(torch.randint(0, self.warm_up + 1, ()))
        most = num_steps - warm_up if self.maximum is None else min(self.maximum, num_steps - warm_up)
        return Depth(warm_up, int(torch.randint(self.minimum, most + 1, ())))

    def per_example(self, unrolled: Unrolled) -> Tensor:
        return unrolled.losses[:, -1]


def _check_count(argument: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(
            argument, expected=f"a whole number ≥ {least}", got=repr(value), remedy="Count steps, from 1."
        )
