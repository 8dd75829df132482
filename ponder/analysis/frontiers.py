"""Frontiers: the best score at every mean exit step, of policies, of blind choices, and of one who knows the labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Frontier", "best_and_latest", "blind_frontier", "blind_mix", "frontier_of", "oracle_frontier"]


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
        """The best score within this mean exit step, where a coin between two neighbouring points is allowed."""
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
    """The score of the best blind choice within a mean step, chosen by one set of scores, judged by another.

    It is a single step that costs no more, or a coin between two steps with that mean. No other coin can be better: one
    that costs less lies below a single step or below a coin with the whole mean.

    Args:
        chosen_by: Scores of every step by which the choice is made, `(samples, steps)`.
        scores: Scores of every step by which the choice is judged, `(samples, steps)`.
        mean_step: What each sample's choice may cost, `(samples,)`, from 1 to the number of steps.
    """
    low, high = torch.triu_indices(scores.shape[1], scores.shape[1])  # a pair of one and the same is a single step
    ahead = mean_step.unsqueeze(1) - 1.0 - low
    share = torch.where(low == high, 0.0, ahead / (high - low).clamp(min=1))

    def mixed(of: Tensor) -> Tensor:
        made: Tensor = of[:, low] * (1.0 - share) + of[:, high] * share
        return made

    possible = (ahead >= 0.0) & (share <= 1.0)
    best = best_and_latest(torch.where(possible, mixed(chosen_by), -torch.inf), 1.0 + low + share * (high - low))
    judged: Tensor = mixed(scores).gather(1, best).squeeze(1)
    return judged


def best_and_latest(scores: Tensor, steps: Tensor) -> Tensor:
    """The place of the best choice in each sample, of those that score the same the one that leaves last.

    Where few rows tell choices apart, many score the same; the earliest of them would be the worst for other rows.

    Args:
        scores: Scores of every choice, `(samples, choices)`.
        steps: The mean exit step of every choice, likewise.

    Returns:
        Places, `(samples, 1)`.
    """
    best = scores.amax(1, keepdim=True)
    return torch.where(scores >= best - 1e-12 * best.abs(), steps, -torch.inf).argmax(1, keepdim=True)


def oracle_frontier(values: Tensor) -> Frontier:
    """What one who knows the value of every answer gets: no policy on these answers lies above.

    Each row climbs the upper hull of its own values, and the steepest climbs of all rows come first: as many as a mean
    exit step allows are the best that can be had for it. For accuracy the last corner is to leave at the first right
    step. Of more than a thousand corners a thousand are kept, evenly over the climbs.

    Args:
        values: The value of each row's answer at each step, `(rows, steps)`, finite; the score is their mean.
    """
    values = values.double()
    rows = len(values)
    slope, steps = _climbs(values)
    slope, of_slope = slope.unique(return_inverse=True)
    climbed = torch.zeros_like(slope).index_add_(0, of_slope, steps)
    mean_step = 1.0 + climbed.flip(0).cumsum(0) / rows
    gained = (slope * climbed).cumsum(0)  # summed from the least to the greatest, beside which others would be rounded
    to_come = torch.cat([gained.new_zeros(1), gained])[:-1]
    score = values.amax(1).mean() - to_come.flip(0) / rows
    slope = slope.flip(0)
    shown = torch.linspace(0, len(slope) - 1, min(len(slope), 1000)).round().long()
    corners = zip(*(column[shown].tolist() for column in (mean_step, score, slope)), strict=True)
    points = [(1.0, float(values[:, 0].mean()), "oracle(price=inf)")]
    return frontier_of([*points, *((n, s, f"oracle(price={price:.4g})") for n, s, price in corners)], hull=True)


def _climbs(values: Tensor) -> tuple[Tensor, Tensor]:
    """The rising edges of the upper hull of each row over its steps, `(edges,)` of all rows: gain a step, and steps."""
    num_steps = values.shape[1]
    place = torch.arange(num_steps, dtype=values.dtype)
    at = torch.zeros(len(values), 1, dtype=torch.long)
    slopes, steps = list[Tensor](), list[Tensor]()
    for _ in range(num_steps - 1):
        gain = (values - values.gather(1, at)) / (place - at)
        slope, to = torch.where(place > at, gain, -torch.inf).max(1, keepdim=True)
        rising = slope > 0.0
        slopes.append(slope[rising])
        steps.append((to - at)[rising].to(values.dtype))
        at = torch.where(rising, to, at)
    return (torch.cat(slopes), torch.cat(steps)) if slopes else (values.new_zeros(0), values.new_zeros(0))
