"""The loss of one step: an encoder that is cut short."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ponder._utils.validation import check_int
from ponder.objectives.base import Depth, Objective, Unrolled, cut_after, registry

__all__ = ["OneStep"]


@registry.register("one-step")
@dataclass(frozen=True)
class OneStep(Objective):
    """ℓ_k, as if the encoder ended after step k: in training no step behind it runs, and none learns.

    Args:
        step: k, from 1 to the number of steps.

    Example:
        >>> objectives.OneStep(2)
        OneStep(step=2)
        >>> objectives.OneStep(2).depth(num_steps=12)
        Depth(warm_up=0, steps=2)
    """

    step: int

    def __post_init__(self) -> None:
        check_int("step", self.step, remedy="Steps count from 1.")

    def depth(self, num_steps: int) -> Depth:
        return cut_after(self.step, num_steps)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        cut = cut_after(self.step, unrolled.losses.shape[1])
        return unrolled.losses[:, cut.total - 1]
