"""Convergence: stop when one more step changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ponder._utils.validation import check_choice
from ponder.errors import ArgumentError
from ponder.export.policies.base import Array, ModelSpec, StepView, registry
from ponder.export.policies.counting import Counting
from ponder.export.policies.signals import at_least_float32

__all__ = ["Converged"]

_TASKS = ("classification", "regression", "multilabel")


@registry.register("converged")
@dataclass(frozen=True)
class Converged(Counting):
    """Twin of `ponder.policies.Converged`."""

    tolerance: float = 0.0
    patience: int = 1
    on: str = "answers"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("on", self.on, ("answers", "features"))

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Outputs where answers are compared, and features where these are."""
        return frozenset({"output" if self.on == "answers" else "features"})

    def check(self, model: ModelSpec) -> None:
        super().check(model)
        if self.on == "answers" and not model.features and model.task.name not in _TASKS:
            raise ArgumentError(
                "policy",
                expected="one that asks of no task of your own how far answers are apart, which exports of before did "
                "not say",
                got=repr(self),
                remedy="Export the model again.",
            )

    def compared(self, step: StepView) -> tuple[Array, Array]:
        if self.on == "answers":
            return super().compared(step)
        assert step.features is not None
        return at_least_float32(step.features), np.asarray(~np.isnan(step.features).any(1))

    def unchanged(self, now: Array, before: Array, step: StepView) -> Array:
        moved: Any = step.task.distance(now, before, step.mask) if self.on == "answers" else _residual(now, before)
        settled: Array = moved <= moved.dtype.type(self.tolerance)
        return settled


def _residual(now: Array, before: Array) -> Array:
    """‖now − before‖ / ‖now‖ of each row, `(rows,)`; from 0 to 0 nothing moves."""
    moved, size = (np.sqrt(np.square(each).sum(1)) for each in (now - before, now))
    residual: Array = np.where(moved == 0, moved.dtype.type(0), moved / size)
    return residual
