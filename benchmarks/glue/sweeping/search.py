"""Which runs a search needs, and which point it chooses: a grid, or successive halving over its epochs.

A search has no state beside the scores that are there, so one that was cut off is replayed to where it was.

Reference: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS
2016.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.glue.config import RunConfig

__all__ = ["FAILED", "Search", "replay", "rung_sizes"]

FAILED = -2.0
"""The score of a run that failed: below every score of a task."""


@dataclass(frozen=True)
class Search:
    """How far a search is."""

    rungs: tuple[tuple[RunConfig, ...], ...]
    best: RunConfig | None


def rung_sizes(points: int, epochs: int, halving: int | None) -> tuple[tuple[int, int], ...]:
    """(runs, epochs) of each rung: the first with all points, the last with all epochs.

    Args:
        points: Configurations to choose from.
        epochs: That the last rung is run for.
        halving: Of each rung the best 1/`halving` (rounded up) go on with `halving` times as many epochs; None runs
            each for all of them.

    Example:
        >>> rung_sizes(36, 50, 3)
        ((36, 2), (12, 6), (4, 17), (2, 50))
    """
    if halving is None:
        return ((points, epochs),)
    whole = _power_up_to(epochs, halving)  # the parts that all epochs are divided into
    part, sizes = max(1, whole // _power_up_to(points, halving)), []
    while part <= whole:
        sizes.append((points, -(-epochs * part // whole)))
        points, part = -(-points // halving), part * halving
    return tuple(sizes)


def replay(points: Sequence[RunConfig], halving: int | None, score: Callable[[RunConfig], float | None]) -> Search:
    """Follow a search as far as there are scores.

    Args:
        points: Configurations to choose from, with all their epochs.
        halving: As for `rung_sizes`.
        score: Of a run; `FAILED` where it has failed, and None where it is still to be done.
    """
    rungs: list[tuple[RunConfig, ...]] = []
    going = list(points)
    for size, epochs in rung_sizes(len(points), points[0].epochs, halving):
        rung = tuple(dataclasses.replace(point, epochs=epochs) for point in going[:size])
        rungs.append(rung)
        scores = [score(run) for run in rung]
        known = [value for value in scores if value is not None]
        if len(known) < len(rung) or max(known) == FAILED:
            return Search(tuple(rungs), None)
        order = sorted(range(len(rung)), key=lambda place: -known[place])  # of equals the first
        going = [rung[place] for place in order]
    return Search(tuple(rungs), going[0])


def _power_up_to(limit: int, base: int) -> int:
    """The greatest power of `base` that is at most `limit`."""
    power = 1
    while power * base <= limit:
        power *= base
    return power
