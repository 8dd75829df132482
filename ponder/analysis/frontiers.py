"""Frontiers: the best score at every mean exit step, of policies, of blind choices, and of one who knows the labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Frontier", "blind_frontier", "blind_mix", "frontier_of", "oracle_frontier"]


@dataclass(frozen=True)
class Frontier:
    """The best score at a mean exit step, as a polyline of points that rise in both.

    Args:
        steps: Mean exit steps, strictly rising.
        scores: The score at each, strictly rising: points that cost more for no better score are left out.
        names: What gives each point, for example ``"Confidence(threshold=0.9)"``.
    """

    steps: tuple[float, ...]
    scores: tuple[float, ...]
    names: tuple[str, ...]

    def best_within(self, mean_step: float) -> int | None:
        """The place of the best point at a mean exit step of at most this; None where all cost more."""
        affordable = [place for place, step in enumerate(self.steps) if step <= mean_step + 1e-9]
        return affordable[-1] if affordable else None

    def mixed(self, mean_step: float) -> float:
        """The score at exactly this mean exit step, where a coin between two neighbouring points is allowed."""
        if mean_step >= self.steps[-1]:
            return self.scores[-1]
        if mean_step <= self.steps[0]:
            return self.scores[0]
        after = next(place for place, step in enumerate(self.steps) if step > mean_step)
        low, high = self.steps[after - 1], self.steps[after]
        share = (mean_step - low) / (high - low)
        return (1.0 - share) * self.scores[after - 1] + share * self.scores[after]


def frontier_of(points: Iterable[tuple[float, float, str]], *, hull: bool = False) -> Frontier:
    """The frontier of points (mean exit step, score, name).

    Args:
        points: The points; there must be at least one.
        hull: Keep the upper concave hull alone, since a coin between two points gives all that lies between them.

    Example:
        >>> frontier_of([(1.0, 0.5, "a"), (2.0, 0.4, "b"), (3.0, 0.9, "c")]).names
        ('a', 'c')
    """
    kept: list[tuple[float, float, str]] = []
    for step, score, name in sorted(points, key=lambda point: (point[0], -point[1])):
        if kept and score <= kept[-1][1]:
            continue
        while hull and len(kept) > 1 and _below(kept[-2], kept[-1], (step, score, name)):
            kept.pop()
        kept.append((step, score, name))
    return Frontier(*(tuple(column) for column in zip(*kept, strict=True)))


def _below(first: tuple[float, float, str], middle: tuple[float, float, str], last: tuple[float, float, str]) -> bool:
    """Whether `middle` lies on or below the line from `first` to `last`."""
    return (middle[1] - first[1]) * (last[0] - first[0]) <= (last[1] - first[1]) * (middle[0] - first[0])


def blind_frontier(scores: Iterable[float]) -> Frontier:
    """One step for all rows, or a coin between two steps: what can be had without looking at a row.

    Args:
        scores: The score of each step, the first first.
    """
    points = [(float(step), score, f"FixedStep(step={step})") for step, score in enumerate(scores, start=1)]
    return frontier_of(points, hull=True)


def blind_mix(chosen_by: Tensor, scores: Tensor, mean_step: Tensor) -> Tensor:
    """The score of the best coin between two steps with a given mean, chosen by one set of scores, judged by another.

    Args:
        chosen_by: Scores of every step by which the two steps are chosen, `(samples, steps)`.
        scores: Scores of every step by which the choice is judged, `(samples, steps)`.
        mean_step: The mean of each sample's coin, `(samples,)`, from 1 to the number of steps.
    """
    low, high = torch.triu_indices(scores.shape[1], scores.shape[1], offset=1)
    share = (mean_step.unsqueeze(1) - 1.0 - low) / (high - low)

    def mixed(of: Tensor) -> Tensor:
        made: Tensor = of[:, low] * (1.0 - share) + of[:, high] * share
        return made

    possible = (share >= 0.0) & (share <= 1.0)
    best = torch.where(possible, mixed(chosen_by), -torch.inf).argmax(1, keepdim=True)
    judged: Tensor = mixed(scores).gather(1, best).squeeze(1)
    return judged


def oracle_frontier(values: Tensor) -> Frontier:
    """What one who knows the value of every answer gets: no policy on these answers lies above.

    At a price λ a step, each row leaves where value − λ · step is greatest; prices from dear to free give the corners
    of the upper hull of all ways to leave. For accuracy the last one is to leave at the first right step.

    Args:
        values: The value of each row's answer at each step, `(rows, steps)`; the score is their mean.
    """
    values = values.double()
    num_steps = values.shape[1]
    steps = torch.arange(1, num_steps + 1, dtype=torch.float64)
    spread = float(values.max() - values.min())
    exact = [spread / apart for apart in range(1, num_steps)]  # all there are where values are two, as right and wrong
    fine = [spread * 10 ** (-place / 40) for place in range(161)]
    prices = sorted({0.0, *exact, *fine})
    between = [(low + high) / 2 for low, high in itertools.pairwise(prices)] or [0.0]
    points = []
    for price in [1e-9 * spread, *between, spread + 1.0]:
        left = (values - price * steps).argmax(1)
        score = float(values.gather(1, left.unsqueeze(1)).mean())
        points.append((float(left.double().mean()) + 1.0, score, f"oracle(price={price:.4g})"))
    return frontier_of(points, hull=True)
