"""Paired bootstrap over rows: is the gap of two runs more than the luck of the rows on which they were compared?

Two runs answer the same rows. A resample draws rows with replacement, the same ones for both runs, and the gap is
measured anew; the middle 95% of the gaps over many resamples are its interval (Efron and Tibshirani 1993, chapter 13;
for comparisons of models Berg-Kirkpatrick, Burkett and Klein 2012). Labels are read from the data of the task, since
results do not keep them; runs from before per-row answers were kept take no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import metrics
from benchmarks.glue.results import Result
from benchmarks.glue.rows import unpack_rows
from benchmarks.tasks import Task

__all__ = ["Interval", "Replayed", "paired_bootstrap"]

_SPEED_UPS = (1.5, 2.0, 3.0)
_RESAMPLES = 1000
_Array = NDArray[Any]


@dataclass(frozen=True)
class Interval:
    """A gap in points, and the interval that holds 95% of its resamples."""

    gap: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Replayed:
    """One run on one split, left by confidence at every threshold that its rounded confidences can tell apart.

    Args:
        task: The task, which says how answers are scored.
        answers: Class numbers, `(rows, steps)`.
        labels: The right classes, `(rows,)`.
        exit_step: The exit step, from 1, of each row under each threshold, `(thresholds, rows)`.
    """

    task: Task
    answers: _Array
    labels: _Array
    exit_step: _Array

    @classmethod
    def of(cls, run: Result, task: Task, labels: _Array) -> Replayed | None:
        """Replay the reported split of a run; None if it keeps no answers of single rows."""
        (split,) = run.reported
        if "rows" not in split:
            return None
        rows = unpack_rows(split["rows"])
        confidences = rows["confidences"]
        thresholds = np.unique(confidences)
        exit_step = np.stack([_first_above(confidences, each) for each in thresholds])
        return cls(task, rows["answers"], labels, exit_step)

    def score(self, rows: _Array, speed_up: float) -> float:
        """Return the score on some rows under the threshold that comes nearest to a speed-up in steps."""
        num_steps = self.answers.shape[1]
        own = self.exit_step[:, rows]
        nearest = int(np.abs(own.mean(axis=1) - num_steps / speed_up).argmin())
        given = self.answers[rows, own[nearest] - 1]
        return metrics.score(self.task, given, self.labels[rows])["score"]

    def mean_score(self, rows: _Array) -> float:
        """Return the mean score over the speed-ups of the rule for the default."""
        return float(np.mean([self.score(rows, speed_up) for speed_up in _SPEED_UPS]))


def paired_bootstrap(
    ours: Sequence[Replayed],
    theirs: Sequence[Replayed],
    *,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Compare runs of one task, pair by pair (one pair a seed), on resamples of its rows.

    Args:
        ours: Runs of one recipe.
        theirs: Runs of another, in the same order.
        resamples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        The mean gap over the pairs in points, and its interval over the rows.
    """
    pairs = list(zip(ours, theirs, strict=True))
    count = len(pairs[0][0].labels)
    draw = np.random.default_rng(seed)
    everything = np.arange(count)
    gaps = [
        _mean_gap(pairs, draw.integers(0, count, count)) for _ in range(resamples)
    ]  # the same rows for both sides of all pairs
    low, high = np.quantile(gaps, [0.025, 0.975])
    return Interval(_mean_gap(pairs, everything), float(low), float(high))


def _mean_gap(pairs: Sequence[tuple[Replayed, Replayed]], rows: _Array) -> float:
    gaps = [own.mean_score(rows) - other.mean_score(rows) for own, other in pairs]
    return 100 * float(np.mean(gaps))


def _first_above(confidences: _Array, threshold: float) -> _Array:
    """Return the first step, from 1, whose confidence is above a threshold; the last step if none is."""
    above = confidences > threshold
    above[:, -1] = True
    first: _Array = above.argmax(axis=1) + 1
    return first
