"""Convergence: stop when one more step changes nothing (a fixed point of a looped solver)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder._utils.validation import check_choice
from ponder.parts.tasks.base import fits_positions
from ponder.policies.base import StepView, registry
from ponder.policies.counting import CountingPolicy

__all__ = ["Converged"]


@registry.register("converged")
@dataclass(frozen=True)
class Converged(CountingPolicy):
    r"""Stop once `patience` steps in a row have changed the answer, or the features, by `tolerance` at most.

    What a step changes is, for answers, the share of them that is another one: 0 where every position of a puzzle, or
    every label of a set, is what it was (for numbers, the greatest difference). For features it is
    ‖f_n − f_{n−1}‖ / ‖f_n‖, the residual by which deep equilibrium models stop (Bai et al. 2019, arXiv 1909.01377).
    Padding does not count. The first step has nothing to be compared with, so that the earliest exit is at step
    `patience` + 1.

    Steps that have learnt to go on from any depth (`objectives.RandomDepth`) come to rest on an answer, and stopping
    there costs no more than running on; where running on spoils the answer, stopping is better. How long an answer
    must rest does not depend on how long the model may run: `rescaled` changes nothing.

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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("on", self.on, ("answers", "features"))

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Outputs where answers are compared, and features where these are."""
        return frozenset({"output" if self.on == "answers" else "features"})

    def compared(self, step: StepView) -> Tensor:
        if self.on == "answers":
            return super().compared(step)
        features = at_least_float32(step.features)
        if step.mask is None or not fits_positions(step.mask, features):
            return features
        return torch.where(step.mask.view(*step.mask.shape, *[1] * (features.dim() - 2)), features, 0.0)

    def answered(self, now: Tensor, step: StepView) -> Tensor:
        return super().answered(now, step) if self.on == "answers" else ~now.flatten(1).isnan().any(1)

    def unchanged(self, now: Tensor, before: Tensor, step: StepView) -> Tensor:
        moved = step.task.distance(now, before, mask=step.mask) if self.on == "answers" else _residual(now, before)
        return moved <= self.tolerance


def _residual(now: Tensor, before: Tensor) -> Tensor:
    """‖now − before‖ / ‖now‖ of each row, `(batch,)`; from 0 to 0 nothing moves."""
    moved, size = (now - before).flatten(1).norm(dim=1), now.flatten(1).norm(dim=1)
    return torch.where(moved == 0, 0.0, moved / size)
