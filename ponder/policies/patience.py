"""Patience: stop when the answer has not changed for a while (PABEE)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from ponder.policies.base import StepView, registry
from ponder.policies.counting import CountingPolicy

__all__ = ["Patience"]


@registry.register("patience")
@dataclass(frozen=True)
class Patience(CountingPolicy):
    """Stop once the answer has stayed the same `patience` times in a row (Zhou et al. 2020, Section 3.2).

    The first step has no answer to agree with, so the earliest exit is at step `patience` + 1. Classes agree when
    the most probable one is the same (in token classification: at every position that is no padding), label sets when
    every label is; numbers when they move by less than `tolerance` (all of them, where an example has several).

    Args:
        patience: How many agreements in a row, ≥ 1 and less than the number of steps.
        tolerance: In regression, the distance below which answers agree, > 0, in the unit of the outputs; not used
            otherwise.

    Example:
        >>> record = Trajectory(torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]]), None, torch.arange(1))
        >>> record.replay(policies.Patience(1)).exit_step  # the second answer agrees with the first
        tensor([2])
    """

    patience: int
    tolerance: float = 0.0
    needs = frozenset({"output"})

    def unchanged(self, now: Tensor, before: Tensor, step: StepView) -> Tensor:
        return step.task.same(now, before, tolerance=self.tolerance, mask=step.mask)

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """The same share of the steps: PABEE's 6 of 12 becomes round(N / 2)."""
        return replace(self, patience=max(1, round(self.patience * num_steps / tuned_for)))
