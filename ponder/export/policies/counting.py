"""What the twins of `Patience` and `Converged` share: they count how many steps in a row have changed nothing."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from ponder._utils.validation import check_int, check_real
from ponder.errors import ArgumentError
from ponder.export.policies.base import (
    Array,
    ModelSpec,
    NumpyPolicy,
    StepView,
    check_answers,
    check_outputs,
)

__all__ = ["Counting"]


class Counting(NumpyPolicy):
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
        return step.task.predictions(step.output), step.task.answered(step.output, step.mask)

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
