"""Patience: stop when the answer has not changed for a while (PABEE)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ponder._utils.trees import Tree
from ponder.errors import ArgumentError
from ponder.parts.answers import answers
from ponder.policies.base import Batch, Setting, StepView, check_not_negative, registry
from ponder.policies.threshold import Knob, ThresholdPolicy

__all__ = ["Patience"]


@registry.register("patience")
@dataclass(frozen=True)
class Patience(ThresholdPolicy):
    """Stop once the answer has stayed the same `patience` times in a row (Zhou et al. 2020, Section 3.2).

    The first step has no answer to agree with, so the earliest exit is at step `patience` + 1. Classes agree when
    the most probable one is the same, label sets when every label is; numbers when they move by less than
    `tolerance` (all of them, where an example has several).

    Args:
        patience: How many agreements in a row, ≥ 1 and less than the number of steps.
        tolerance: For regression, > 0, in the unit of the outputs; not used otherwise.
    """

    patience: int
    tolerance: float = 0.0
    needs = frozenset({"output"})
    knob = Knob("patience", "at_least", low=1, high=lambda num_steps, width: num_steps - 1, whole=True)

    def __post_init__(self) -> None:
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 1:
            raise ArgumentError(
                "patience",
                expected="a whole number ≥ 1",
                got=repr(self.patience),
                remedy="Pass patience=6, say.",
            )
        check_not_negative("tolerance", self.tolerance)

    def check(self, setting: Setting) -> None:
        super().check(setting)
        if self.patience >= setting.num_steps:
            raise ArgumentError(
                "patience",
                expected=f"less than the model's {setting.num_steps} steps, or no row can ever exit early",
                got=self.patience,
                remedy="Lower it, or use policies.LastStep() to run to the end.",
            )
        if setting.task == "regression" and self.tolerance == 0.0:
            raise ArgumentError(
                "tolerance",
                expected="a positive number for regression, where two answers are never exactly equal",
                got=self.tolerance,
                remedy="Pass Patience(patience, tolerance=0.1), say, in the unit of the outputs.",
            )
        if setting.task == "token_classification":
            raise ArgumentError(
                "policy",
                expected="one answer per example under Patience",
                got="the task 'token_classification'",
                remedy="Answers on padding would count too; write a policy that knows the mask.",
            )

    def init(self, batch: Batch) -> Tree:
        return {"count": torch.zeros(batch.size, dtype=torch.long, device=batch.device), "answer": None}

    def statistic(self, step: StepView, state: Tree) -> tuple[Tensor, Tree]:
        answer = _answer(step.output, step.task)
        if state["answer"] is None:
            return state["count"], {"count": state["count"], "answer": answer}
        agrees = self._agrees(answer, state["answer"]) & (step.index > 1)
        count = torch.where(agrees, state["count"] + 1, 0)
        return count, {"count": count, "answer": answer}

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """PABEE's 6 of 12 steps becomes round(N / 2)."""
        return replace(self, patience=max(1, round(self.patience * num_steps / tuned_for)))

    def _agrees(self, answer: Tensor, before: Tensor) -> Tensor:
        same = (answer - before).abs() < self.tolerance if answer.is_floating_point() else answer == before
        return same.flatten(1).all(1) if same.dim() > 1 else same


def _answer(output: Tensor, task: str | None) -> Tensor:
    """What is compared; one answer per example is needed."""
    if task not in ("regression", "multilabel") and (output.dim() != 2 or output.shape[-1] < 2):
        raise ArgumentError(
            "policy",
            expected="class logits (batch, classes ≥ 2) under Patience, or a model that names its task",
            got=f"outputs of shape {tuple(output.shape)} and task {task!r}",
            remedy="Build the model with task='regression' and give Patience a tolerance.",
        )
    return answers(output, task)
