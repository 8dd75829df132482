"""What `Patience` and `Converged` share: they count how many steps in a row have left the answer where it was."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ponder._utils.trees import Tree
from ponder._utils.validation import check_int, check_real
from ponder.errors import ArgumentError
from ponder.policies.base import ModelSpec, PolicyBatch, StepView, ThresholdPolicy
from ponder.policies.threshold import Threshold

__all__ = ["CountingPolicy"]


class CountingPolicy(ThresholdPolicy):
    """Base of the policies that stop once `patience` steps in a row have changed nothing.

    A leaf has the fields `patience` and `tolerance`, and says in `unchanged` what changes nothing. The first step has
    nothing to be compared with, so that the earliest exit is at step `patience` + 1.
    """

    patience: int
    tolerance: float
    tunable = Threshold("patience", "at_least", low=1, high=lambda num_steps, width: num_steps - 1, whole=True)

    @abstractmethod
    def unchanged(self, now: Tensor, before: Tensor, step: StepView) -> Tensor:
        """Whether a step changed nothing that counts, `(batch,)` bool.

        Args:
            now: What `compared` gives of the step.
            before: What it gave of the step before.
            step: The step.
        """

    def compared(self, step: StepView) -> Tensor:
        """What is compared with what it was a step before, `(batch, …)`: the answer where a leaf says nothing else."""
        if not step.task.fits(step.output):
            raise ArgumentError(
                "policy",
                expected=f"class logits (batch, classes ≥ 2) under {type(self).__name__}, or a model that names its "
                "task",
                got=f"outputs of shape {tuple(step.output.shape)} and task {step.task.name!r}",
                remedy=f"Build the model with its task; for task='regression', give {type(self).__name__} a tolerance.",
            )
        return step.task.predictions(step.output)

    def answered(self, now: Tensor, step: StepView) -> Tensor:
        """Which rows have something to compare, `(batch,)` bool: NaN is no answer, and equals none.

        Args:
            now: What `compared` gives of the step.
            step: The step.
        """
        return step.task.answered(step.output, step.mask)

    def __post_init__(self) -> None:
        check_int("patience", self.patience, remedy="Pass patience=6, say.")
        check_real("tolerance", self.tolerance)

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        if self.patience >= spec.num_steps:
            raise ArgumentError(
                "patience",
                expected=f"less than the model's {spec.num_steps} steps, or no row can ever exit early",
                got=self.patience,
                remedy="Lower it, or use policies.LastStep() to run to the end.",
            )
        if "output" in self.needs and spec.task.numbers and self.tolerance == 0.0:
            raise ArgumentError(
                "tolerance",
                expected="a positive number for regression, where two answers are never exactly equal",
                got=self.tolerance,
                remedy=f"Give {type(self).__name__} a tolerance=0.1, say, in the unit of the outputs.",
            )

    def init(self, batch: PolicyBatch) -> Tree:
        count = torch.zeros(batch.size, dtype=torch.long, device=batch.device)
        return {"count": count, "before": None, "answered": torch.zeros_like(count, dtype=torch.bool)}

    def statistic(self, step: StepView, state: Tree) -> tuple[Tensor, Tree]:
        now, count, before = self.compared(step), state["count"], state["before"]
        answered = self.answered(now, step)
        if before is not None:
            comparable = answered & state["answered"] & (step.index > 1)
            count = torch.where(self.unchanged(now, before, step) & comparable, count + 1, 0)
        return count, {"count": count, "before": now, "answered": answered}
