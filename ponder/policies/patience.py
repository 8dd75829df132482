"""Patience: stop when the answer has not changed for a while (PABEE)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ponder._utils.trees import Tree
from ponder._utils.validation import check_int, check_real
from ponder.errors import ArgumentError
from ponder.policies.base import ModelSpec, PolicyBatch, StepView, ThresholdPolicy, registry
from ponder.policies.threshold import Threshold

__all__ = ["Patience"]


@registry.register("patience")
@dataclass(frozen=True)
class Patience(ThresholdPolicy):
    """Stop once the answer has stayed the same `patience` times in a row (Zhou et al. 2020, Section 3.2).

    The first step has no answer to agree with, so the earliest exit is at step `patience` + 1. Classes agree when
    the most probable one is the same (in token classification: at every position that is no padding), label sets when
    every label is; numbers when they move by less than `tolerance` (all of them, where an example has several).

    Args:
        patience: How many agreements in a row, ≥ 1 and less than the number of steps.
        tolerance: For regression, > 0, in the unit of the outputs; not used otherwise.
    """

    patience: int
    tolerance: float = 0.0
    needs = frozenset({"output"})
    tunable = Threshold("patience", "at_least", low=1, high=lambda num_steps, width: num_steps - 1, whole=True)

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
        if spec.task.numbers and self.tolerance == 0.0:
            raise ArgumentError(
                "tolerance",
                expected="a positive number for regression, where two answers are never exactly equal",
                got=self.tolerance,
                remedy="Pass Patience(patience, tolerance=0.1), say, in the unit of the outputs.",
            )

    def init(self, batch: PolicyBatch) -> Tree:
        return {"count": torch.zeros(batch.size, dtype=torch.long, device=batch.device), "answer": None}

    def statistic(self, step: StepView, state: Tree) -> tuple[Tensor, Tree]:
        if not step.task.fits(step.output):
            raise ArgumentError(
                "policy",
                expected="class logits (batch, classes ≥ 2) under Patience, or a model that names its task",
                got=f"outputs of shape {tuple(step.output.shape)} and task {step.task.name!r}",
                remedy="Build the model with task='regression' and give Patience a tolerance.",
            )
        answer, before = step.task.predictions(step.output), state["answer"]
        if before is None:
            return state["count"], {"count": state["count"], "answer": answer}
        agrees = step.task.same(answer, before, tolerance=self.tolerance, mask=step.mask) & (step.index > 1)
        count = torch.where(agrees, state["count"] + 1, 0)
        return count, {"count": count, "answer": answer}

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """PABEE's 6 of 12 steps becomes round(N / 2)."""
        return replace(self, patience=max(1, round(self.patience * num_steps / tuned_for)))
