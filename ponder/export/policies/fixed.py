"""Policies that look at no row: one step for all, and full depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ponder._utils.validation import check_int
from ponder.export.policies.base import Array, ModelSpec, NumpyPolicy, StepView, registry

__all__ = ["FixedStep", "LastStep"]


@registry.register("fixed-step")
@dataclass(frozen=True)
class FixedStep(NumpyPolicy):
    """Twin of `ponder.policies.FixedStep`."""

    step: int

    def check(self, model: ModelSpec) -> None:
        super().check(model)
        check_int("step", self.step, 1, model.num_steps, remedy="Steps count from 1.")

    def init(self, row_ids: Array) -> Any:
        return row_ids

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        return np.full(len(state), step.index >= self.step), state


@registry.register("last-step")
@dataclass(frozen=True)
class LastStep(NumpyPolicy):
    """Twin of `ponder.policies.LastStep`."""

    def init(self, row_ids: Array) -> Any:
        return row_ids

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        return np.zeros(len(state), dtype=bool), state
