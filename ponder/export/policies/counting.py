"""Policies that count how many steps in a row have changed nothing: patience, and convergence."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from ponder._utils.validation import check_choice, check_int, check_real
from ponder.errors import ArgumentError
from ponder.export.policies.base import (
    Array,
    ModelSpec,
    NumpyPolicy,
    StepView,
    check_answers,
    check_outputs,
    registry,
)
from ponder.export.policies.signals import at_least_float32

__all__ = ["Converged", "Patience"]


class _Counting(NumpyPolicy):
    """Exit where `patience` steps in a row have changed nothing; twin of `ponder.policies.counting.CountingPolicy`."""

    patience: int
    tolerance: float

    def __post_init__(self) -> None:
        check_int("patience", self.patience)
        check_real("tolerance", self.tolerance)

    @abstractmethod
    def unchanged(self, now: Array, before: Array, step: StepView) -> Array:
        """Whether a step changed nothing that counts, `(rows,)` bool, of what `compared` gave of it and before."""

    def compared(self, step: StepView) -> tuple[Array, Array]:
        """What is compared with what it was a step before, `(rows, …)`, and which rows have it, `(rows,)` bool."""
        assert step.output is not None
        return step.task.predictions(step.output), _without_nan(step.output)

    def check(self, model: ModelSpec) -> None:
        super().check(model)
        most = model.num_steps - 1
        check_int("patience", self.patience, 1, most, remedy="Use policies.LastStep() to run to the end.")
        if "output" not in self.needs:
            return
        check_outputs(model)
        check_answers(model, self)
        if model.task.numbers and self.tolerance == 0.0:
            raise ArgumentError(
                "tolerance",
                expected="a positive number for regression, where two answers are never exactly equal",
                got=self.tolerance,
                remedy=f"Give {type(self).__name__} a tolerance=0.1, say, in the unit of the outputs.",
            )

    def init(self, row_ids: Array) -> Any:
        return np.zeros(len(row_ids), dtype=np.int64), None, np.zeros(len(row_ids), dtype=bool)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        count, before, answered_before = state
        now, answered = self.compared(step)
        if before is not None:
            count = np.where(self.unchanged(now, before, step) & answered & answered_before, count + 1, 0)
        return count >= self.patience, (count, now, answered)


@registry.register("patience")
@dataclass(frozen=True)
class Patience(_Counting):
    """Twin of `ponder.policies.Patience`."""

    patience: int
    tolerance: float = 0.0
    needs = frozenset({"output"})

    def unchanged(self, now: Array, before: Array, step: StepView) -> Array:
        equal = np.abs(now - before) < self.tolerance if step.task.numbers else now == before
        unchanged: Array = equal.reshape(len(equal), -1).all(1)
        return unchanged


_TASKS = ("classification", "regression", "multilabel")


@registry.register("converged")
@dataclass(frozen=True)
class Converged(_Counting):
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
        return at_least_float32(step.features), _without_nan(step.features)

    def unchanged(self, now: Array, before: Array, step: StepView) -> Array:
        rows = (len(now), -1)
        moved: Any
        if self.on == "features":
            moved, size = (np.sqrt(np.square(each.reshape(rows)).sum(1)) for each in (now - before, now))
            moved = np.where(moved == 0, moved.dtype.type(0), moved / size)
        elif step.task.numbers:
            moved = np.abs(now - before).reshape(rows).max(1)
        else:
            moved = (now != before).reshape(rows).mean(1, dtype=np.float32)
        settled: Array = moved <= moved.dtype.type(self.tolerance)
        return settled


def _without_nan(values: Array) -> Array:
    """Which rows have no NaN, `(rows,)` bool."""
    whole: Array = np.asarray(~np.isnan(values).reshape(len(values), -1).any(1))
    return whole
