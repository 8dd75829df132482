"""Convergence: stop when one more step changes nothing (a fixed point of a looped solver)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder._utils.trees import Tree
from ponder._utils.validation import check_int, check_real
from ponder.errors import ArgumentError
from ponder.policies.base import ModelSpec, PolicyBatch, StepView, ThresholdPolicy, registry
from ponder.policies.threshold import Threshold

__all__ = ["Converged"]


@registry.register("converged")
@dataclass(frozen=True)
class Converged(ThresholdPolicy):
    r"""Stop once `patience` steps in a row have changed the answer, or the features, by `tolerance` at most.

    What a step changes is, for answers, the share of them that is another one: 0 where every position of a puzzle, or
    every label of a set, is what it was (for numbers, the greatest difference). For features it is
    ‖f_n − f_{n−1}‖ / ‖f_n‖, the residual by which deep equilibrium models stop (Bai et al. 2019, arXiv 1909.01377).
    Padding does not count. The first step has nothing to be compared with, so that the earliest exit is at step
    `patience` + 1.

    Steps that have learnt to go on from any depth (`objectives.RandomDepth`) come to rest on an answer, and stopping
    there costs no more than running on; where running on spoils the answer, stopping is better.

    Args:
        tolerance: The greatest change that counts as none, ≥ 0.
        patience: How many such steps in a row, ≥ 1 and less than the number of steps.
        on: ``"answers"`` or ``"features"``.

    Example:
        >>> Converged(patience=3)
        Converged(tolerance=0.0, patience=3, on='answers')
    """

    tolerance: float = 0.0
    patience: int = 1
    on: Literal["answers", "features"] = "answers"
    tunable = Threshold("patience", "at_least", low=1, high=lambda num_steps, width: num_steps - 1, whole=True)

    def __post_init__(self) -> None:
        check_real("tolerance", self.tolerance)
        check_int("patience", self.patience, remedy="Pass patience=3, say.")
        if self.on not in ("answers", "features"):
            raise ArgumentError(
                "on", expected="'answers' or 'features'", got=repr(self.on), remedy="Choose one of the two."
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Outputs, or features."""
        return frozenset({"output" if self.on == "answers" else "features"})

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        if self.patience >= spec.num_steps:
            raise ArgumentError(
                "patience",
                expected=f"less than the model's {spec.num_steps} steps, or no row can ever exit early",
                got=self.patience,
                remedy="Lower it, or use policies.LastStep() to run to the end.",
            )
        if self.on == "answers" and spec.task.numbers and self.tolerance == 0.0:
            raise ArgumentError(
                "tolerance",
                expected="a positive number for regression, where two answers are never exactly equal",
                got=self.tolerance,
                remedy="Pass Converged(tolerance=0.01), say, in the unit of the outputs.",
            )

    def init(self, batch: PolicyBatch) -> Tree:
        return {"count": torch.zeros(batch.size, dtype=torch.long, device=batch.device), "before": None}

    def statistic(self, step: StepView, state: Tree) -> tuple[Tensor, Tree]:
        now, before = self._looked_at(step), state["before"]
        if before is None:
            return state["count"], {"count": state["count"], "before": now}
        moved = step.task.distance(now, before, mask=step.mask) if self.on == "answers" else _residual(now, before)
        count = torch.where((moved <= self.tolerance) & (step.index > 1), state["count"] + 1, 0)
        return count, {"count": count, "before": now}

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """Itself: how long an answer must rest does not depend on how long the model may run."""
        return self

    def _looked_at(self, step: StepView) -> Tensor:
        """What is compared with what it was a step before, `(batch, …)`."""
        if self.on == "features":
            features = at_least_float32(step.features)
            return features if step.mask is None else torch.where(step.mask.unsqueeze(-1), features, 0.0)
        if not step.task.fits(step.output):
            raise ArgumentError(
                "policy",
                expected="class logits (batch, classes ≥ 2) under Converged, or a model that names its task",
                got=f"outputs of shape {tuple(step.output.shape)} and task {step.task.name!r}",
                remedy="Build the model with its task, or compare features: Converged(tolerance, on='features').",
            )
        return step.task.predictions(step.output)


def _residual(now: Tensor, before: Tensor) -> Tensor:
    """‖now − before‖ / ‖now‖ of each row, `(batch,)`; from 0 to 0 nothing moves."""
    moved, size = (now - before).flatten(1).norm(dim=1), now.flatten(1).norm(dim=1)
    return torch.where(moved == 0, 0.0, moved / size)
