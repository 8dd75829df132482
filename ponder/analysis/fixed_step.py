"""One step for all rows: the first that is not clearly worse than a later one and known to lose little."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

__all__ = ["StepForAll", "margin_of", "step_for_all"]


@dataclass(frozen=True)
class StepForAll:
    """The step that all rows may leave at, and what is known of it against full depth.

    Args:
        step: The step, from 1; full depth where no earlier one is known to lose no more than the margin.
        score: What it scores on these rows.
        full_depth: What full depth scores on them.
        change: The mean over the rows of what the step's answer is worth above that of full depth.
        at_least: The least that this can be of the rows to come, with 97.5% confidence.
        margin: The most that may be lost.
        num_steps: The number of steps.
        greatest_loss: What `at_least` takes for the most that a row can lose, where numbers tell no limit: the most
            that one of these rows does. None where no row can lose more than 1.
    """

    step: int
    score: float
    full_depth: float
    change: float
    at_least: float
    margin: float
    num_steps: int
    greatest_loss: float | None = None


def margin_of(scores: Sequence[float], *, shares: bool) -> float:
    """What a gain has to be to matter: 0.03 of right answers, or a tenth of what the steps differ by."""
    return 0.03 if shares else 0.1 * (max(scores) - min(scores))


def step_for_all(values: Tensor, margin: float, *, shares: bool) -> StepForAll:
    """The first step that is not clearly worse than full depth or the best step, and known to lose at most a margin.

    It is clearly worse where it is so by more than 1.96 standard errors, row by row. The least by which it is above
    full depth holds for all steps at once with 97.5% confidence (Bonferroni): it is the end of a normal interval with
    z²/2 rows more of the greatest loss that a row can have and as many of the greatest gain (as in Agresti & Coull
    1998), without which a few rows that agree would promise that all do. Of numbers that loss is taken to be the
    greatest of any row at any step: those that lose most at this one may not be among so few. Full depth is taken where
    no other step is.

    Args:
        values: What each row's answer is worth at each step, `(rows, steps)`, float64.
        margin: The most that may be lost against full depth.
        shares: Whether the values are from 0 to 1.
    """
    rows, num_steps = values.shape
    clearly_worse = torch.zeros(num_steps, dtype=torch.bool)
    for other in (int(values.mean(0).argmax()), num_steps - 1):
        worse = values[:, other].unsqueeze(1) - values
        clearly_worse |= worse.mean(0) > 1.96 * worse.std(0) / math.sqrt(rows)
    above = values - values[:, -1:]
    z = NormalDist().inv_cdf(1.0 - 0.025 / (num_steps - 1))
    size = rows + z**2
    greatest = 1.0 if shares else float(above.abs().amax())
    mean = above.sum(0) / size
    variance = ((above**2).sum(0) + z**2 * greatest**2) / size - mean**2
    at_least = mean - z * (variance / size).sqrt()
    known = ~clearly_worse & (at_least >= -margin)
    known[-1], at_least[-1] = True, 0.0
    place = int(known.long().argmax())
    scores = values.mean(0).tolist()
    change = float(above[:, place].mean())
    supposed = None if shares else greatest
    return StepForAll(place + 1, scores[place], scores[-1], change, float(at_least[place]), margin, num_steps, supposed)
