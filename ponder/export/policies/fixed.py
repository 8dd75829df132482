"""Policies that look at no row: one step for all, and full depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ponder._utils.validation import check_int
from ponder.export.policies.base import ModelSpec, NumpyPolicy, StepView, registry

__all__ = ["FixedStep", "LastStep"]


@registry.register("fixed-step")
@dataclass(frozen=True)
class FixedStep(NumpyPolicy):
    """Twin of `ponder.policies.FixedStep`."""

    step: int

    def check(self, model: ModelSpec) -> None:
        super().check(model)
        check_int("step", self.step, 1, model.num_steps, remedy="Steps count from 1.")

    def decide(self, step: StepView, state: Any) -> tuple[bool, Any]:
        return step.index >= self.step, state


@registry.register("last-step")
@dataclass(frozen=True)
class LastStep(NumpyPolicy):
    """Twin of `ponder.policies.LastStep`."""

    def decide(self, step: StepView, state: Any) -> tuple[bool, Any]:
        return False, state
