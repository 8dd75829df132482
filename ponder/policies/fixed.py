"""Policies that look at nothing: exit at a given step, or run to the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from ponder._utils.trees import Tree
from ponder._utils.validation import check_int
from ponder.policies.base import ExitPolicy, ModelSpec, StepView, ThresholdPolicy, registry
from ponder.policies.threshold import Threshold

__all__ = ["FixedStep", "LastStep"]


@registry.register("fixed-step")
@dataclass(frozen=True)
class FixedStep(ThresholdPolicy):
    """Every row exits at `step`.

    Args:
        step: The step at which every row leaves, from 1 to the model's number of steps.

    Example:
        >>> record = Trajectory(torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]]), None, torch.arange(1))
        >>> record.replay(policies.FixedStep(2)).exit_step
        tensor([2])
    """

    step: int
    tunable = Threshold("step", "at_least", low=1, high=lambda num_steps, width: num_steps, whole=True)

    def __post_init__(self) -> None:
        check_int("step", self.step, remedy="Steps count from 1.")

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        check_int("step", self.step, 1, spec.num_steps, remedy="Steps count from 1.")

    def statistic(self, step: StepView, state: Tree) -> tuple[Tensor, Tree]:
        return step.index, state

    def exit_of_all(self, num_steps: int) -> int | None:
        return self.step

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        return replace(self, step=max(1, round(self.step * num_steps / tuned_for)))


@registry.register("last-step")
@dataclass(frozen=True)
class LastStep(ExitPolicy):
    """No early exit: every row runs to the last step, as without `ponder`.

    Example:
        >>> record = Trajectory(torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]]), None, torch.arange(1))
        >>> record.replay(policies.LastStep()).exit_step
        tensor([3])
    """

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        return False, state

    def exit_of_all(self, num_steps: int) -> int | None:
        return num_steps
