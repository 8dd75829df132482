"""Policies that count answers: patience (PABEE), voting, and convergence of a looped solver."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np

from ponder._utils.arrays import at_least_float32, namespace
from ponder._utils.checks import check_choice, check_int, check_real
from ponder.errors import ArgumentError
from ponder.policies.base import (
    Array,
    ModelSpec,
    PolicyState,
    StepView,
    Threshold,
    ThresholdPolicy,
    scaled_step,
)
from ponder.policies.certainty import OfClasses, class_logits
from ponder.tasks import fits_positions

__all__ = ["Converged", "Patience", "Voting"]


class _Counting(ThresholdPolicy):
    """Base of the policies that stop once `patience` steps in a row have changed nothing.

    The first step has no predecessor to be compared with, so the earliest exit is at step
    `patience` + 1.
    """

    patience: int
    tolerance: float
    tunable = Threshold(
        "patience", "at_least", low=1, high=lambda num_steps, width: num_steps - 1, whole=True
    )

    def __post_init__(self) -> None:
        check_int("patience", self.patience)
        check_real("tolerance", self.tolerance)

    @abstractmethod
    def unchanged(self, now: Array, before: Array, step: StepView) -> Array:
        """Return whether a step changed nothing that counts, `(batch,)` bool."""

    def compared(self, step: StepView) -> tuple[Array, Array]:
        """Return the answers to be compared, `(batch, …)`, and which rows have one (not NaN)."""
        output = step.output
        if step.task.classes:
            output = class_logits(self, step)
        return step.task.predictions(output), step.task.answered(output, step.mask)

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        if "output" in self.needs and spec.task.numbers and not self.tolerance:
            expected = "a positive number for regression, where two answers are never exactly equal"
            remedy = f"Give {type(self).__name__} a tolerance=0.1, say, in the unit of the outputs."
            raise ArgumentError("tolerance", expected=expected, got=self.tolerance, remedy=remedy)

    def init(self, first: StepView) -> PolicyState:
        now, _ = self.compared(first)
        count = first.index * 0
        # Before step 1 no row has answered, so that the first answer agrees with nothing.
        return {"count": count, "before": now, "answered": count > 0}

    def statistic(self, step: StepView, state: PolicyState) -> tuple[Array, PolicyState]:
        now, answered = self.compared(step)
        same = self.unchanged(now, state["before"], step) & answered & state["answered"]
        count = namespace(now).where(same, state["count"] + 1, 0)
        return count, {"count": count, "before": now, "answered": answered}


@dataclass(frozen=True)
class Patience(_Counting):
    """Stop once the answer has stayed the same `patience` times in a row (PABEE).

    See Zhou et al. 2020, Section 3.2. The first step has no answer to agree with, so the earliest
    exit is at step `patience` + 1. Classes agree if the most probable one is the same (in token
    classification: at every position that is not padding), label sets if every label is the same,
    and numbers if all of them move by less than `tolerance`.

    Args:
        patience: Agreements in a row, ≥ 1; from the number of steps on, no row exits early.
        tolerance: In regression, the distance below which answers agree, > 0, in the unit of the
            outputs.

    Example:
        >>> scores = torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]])
        >>> record = Trajectory(scores, None, torch.arange(1))
        >>> record.replay(policies.Patience(1)).exit_step  # the second answer agrees with the first
        tensor([2])
    """

    patience: int
    tolerance: float = 0.0
    needs = frozenset({"output"})

    def unchanged(self, now: Array, before: Array, step: StepView) -> Array:
        return step.task.same(now, before, tolerance=self.tolerance, mask=step.mask)

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """Return the same share of the steps: PABEE's 6 of 12 becomes round(N / 2)."""
        return replace(self, patience=scaled_step(self.patience, tuned_for, num_steps))


@dataclass(frozen=True)
class Converged(_Counting):
    r"""Stop once `patience` steps in a row have changed the answer, or the features, by little.

    The change of answers is the share of answers that differ: 0 if every position of a puzzle, or
    every label of a set, is the same. For numbers it is the greatest difference. The change of
    features is ‖f_n − f_{n−1}‖ / ‖f_n‖, the residual with which deep equilibrium models stop (Bai
    et al. 2019, arXiv 1909.01377). Padding does not count.

    Steps that have learnt to continue from any depth (`objectives.RandomDepth`) settle on an
    answer, and stopping there costs nothing; if running on would spoil the answer, stopping is
    better. How long an answer must stay does not depend on how long the model may run: `rescaled`
    changes nothing.

    Args:
        tolerance: The greatest change that still counts as no change, ≥ 0.
        patience: The number of such steps in a row, ≥ 1.
        on: ``"answers"`` or ``"features"``.

    Example:
        >>> policies.Converged(patience=3)
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
        """Outputs or features, whichever are compared."""
        if self.on == "answers":
            return frozenset({"output"})
        return frozenset({"features"})

    def compared(self, step: StepView) -> tuple[Array, Array]:
        if self.on == "answers":
            return super().compared(step)
        features = at_least_float32(step.features)
        xp = namespace(features)
        if step.mask is not None and fits_positions(step.mask, features):
            inside = step.mask.reshape(*step.mask.shape, *[1] * (features.ndim - 2))
            features = xp.where(inside, features, 0.0)
        flat = features.reshape(features.shape[0], -1)
        return flat, ~xp.isnan(flat).any(1)

    def unchanged(self, now: Array, before: Array, step: StepView) -> Array:
        if self.on == "answers":
            return step.task.distance(now, before, mask=step.mask) <= self.tolerance
        moved = _norm(now - before)
        return moved <= self.tolerance * _norm(now)  # ≤, since from 0 to 0 nothing moves


@dataclass(frozen=True)
class Voting(OfClasses):
    """Stop once `votes` of the steps so far, this one included, give the answer of this step.

    Unlike patience, a dissenting step in between costs nothing but itself (after the voting of Sun
    et al. 2021, "Early Exiting with Ensemble Internal Classifiers", Section 3.2, with a fixed
    number of votes). In token classification every position votes, and the row exits once each
    position that is not padding has enough votes.

    Args:
        votes: Number of votes, from 1 (exit at the first step) to the number of steps.

    Example:
        >>> scores = torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]])
        >>> record = Trajectory(scores, None, torch.arange(1))
        >>> record.replay(policies.Voting(2)).exit_step  # two steps have given this answer
        tensor([2])
    """

    votes: int
    tunable = Threshold(
        "votes", "at_least", low=1, high=lambda num_steps, width: num_steps, whole=True
    )

    def __post_init__(self) -> None:
        check_int("votes", self.votes)

    def init(self, first: StepView) -> PolicyState:
        output = class_logits(self, first)
        xp = namespace(output)
        return xp.zeros_like(output, dtype=xp.int64)

    def statistic(self, step: StepView, state: PolicyState) -> tuple[Array, PolicyState]:
        output = class_logits(self, step)
        xp = namespace(output)
        options = {}
        if xp is not np:
            options["device"] = output.device
        given = output.argmax(-1)[..., None] == xp.arange(output.shape[-1], **options)
        # An output that is NaN is not an answer, and has no vote.
        given = given & ~xp.isnan(output).any(-1)[..., None]
        votes = state + given
        for_answer = (votes * given).sum(-1)
        if for_answer.ndim == 1:
            return for_answer, votes
        if step.mask is not None:
            for_answer = xp.where(step.mask, for_answer, step.num_steps)
        return xp.amin(for_answer, 1), votes

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        return replace(self, votes=scaled_step(self.votes, tuned_for, num_steps))


def _norm(rows: Array) -> Array:
    """Return the Euclidean norm of each row, `(batch,)`."""
    return (rows * rows).sum(1) ** 0.5
