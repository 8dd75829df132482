"""The loss at a drawn depth, from a state some steps in: progressive loss, and backpropagation cut short."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder._utils.validation import check_int
from ponder.errors import ArgumentError
from ponder.objectives.base import Depth, Objective, Unrolled, registry

__all__ = ["RandomDepth"]


@registry.register("random-depth")
@dataclass(frozen=True)
class RandomDepth(Objective):
    r"""ℓ_{k+n}, with k steps without gradient and then n steps with one, both drawn anew for every batch.

    k is uniform on 0..`warm_up` and n uniform on `minimum`..min(`maximum`, N − k), so that no run is deeper than N.
    A step that is trained to go on from any state that it has made itself, without knowing how many steps came before,
    goes on to improve the answer where it is run for longer than in training. ``RandomDepth(warm_up=None)`` is the
    progressive loss of Bansal et al. 2022 (arXiv 2202.05826, Section 3.2). A small `maximum` cuts backpropagation
    through steps short: memory and time of the backward pass do not grow with N.

    One shared step with one shared head can be trained so, and the loss says nothing about hazards. The random numbers
    are those of PyTorch's global generator.

    Args:
        minimum: Fewest steps with a gradient, ≥ 1.
        maximum: Most steps with a gradient, at least `minimum`; N where None.
        warm_up: Most steps without a gradient, ≥ 0; as many as leave room for `minimum` where None.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> RandomDepth(minimum=2, maximum=4, warm_up=8).depth(12)
        Depth(warm_up=8, steps=2)
    """

    minimum: int = 1
    maximum: int | None = None
    warm_up: int | None = 0
    draws_depth = True

    def __post_init__(self) -> None:
        check_int("minimum", self.minimum, remedy="Count steps, from 1.")
        if self.maximum is not None:
            check_int("maximum", self.maximum, self.minimum, remedy="It is no less than minimum, or None.")
        if self.warm_up is not None:
            check_int("warm_up", self.warm_up, 0, remedy="Count steps; 0 for none, None for as many as there is room.")

    def check_depth(self, num_steps: int) -> None:
        room = num_steps - self.minimum
        if room < (self.warm_up or 0):
            raise ArgumentError(
                "objective",
                expected=f"minimum + warm_up of at most the model's {num_steps} steps",
                got=repr(self),
                remedy="Lower them, or build the model with more steps.",
            )

    def depth(self, num_steps: int) -> Depth:
        self.check_depth(num_steps)
        room = num_steps - self.minimum
        warm_up = int(torch.randint(0, 1 + (room if self.warm_up is None else self.warm_up), ()))
        most = num_steps - warm_up if self.maximum is None else min(self.maximum, num_steps - warm_up)
        return Depth(warm_up, int(torch.randint(self.minimum, most + 1, ())))

    def per_example(self, unrolled: Unrolled) -> Tensor:
        return unrolled.losses[:, -1]
