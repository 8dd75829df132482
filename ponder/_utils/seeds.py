"""Numbers over seeds: their mean and standard deviation, place by place, and scores compared at equal costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ponder._utils.numerics import interpolate
from ponder.errors import ArgumentError

__all__ = ["Band", "at_equal_costs", "relative"]

_GRID = 64  # places between the ends of a line over several seeds; what is between is drawn straight


@dataclass(frozen=True)
class Band:
    """Means and standard deviations over seeds, a pair a place.

    The standard deviation is that of a sample (divided by seeds − 1), as in the tables; 0 where one seed has a value.

    Args:
        mean: Means, NaN where no seed has a value.
        std: Standard deviations.
        seeds: Number of seeds.
    """

    mean: list[float]
    std: list[float]
    seeds: int

    @classmethod
    def of(cls, series: Sequence[Sequence[float]]) -> Band:
        """The band over series of one length, one a seed; a NaN is a value that a seed does not have.

        Example:
            >>> Band.of([[1.0, 2.0], [3.0, float("nan")]])
            Band(mean=[2.0, 2.0], std=[1.4142135623730951, 0.0], seeds=2)
        """
        places = [[value for value in place if not math.isnan(value)] for place in zip(*series, strict=True)]
        return cls(
            [statistics.fmean(place) if place else math.nan for place in places],
            [statistics.stdev(place) if len(place) > 1 else 0.0 for place in places],
            len(series),
        )

    @property
    def low(self) -> list[float]:
        """The means less one standard deviation."""
        return [mean - std for mean, std in zip(self.mean, self.std, strict=True)]

    @property
    def high(self) -> list[float]:
        """The means plus one standard deviation."""
        return [mean + std for mean, std in zip(self.mean, self.std, strict=True)]

    def name(self, label: str | None) -> str | None:
        """The label, which says what the band is where there are several seeds."""
        if self.seeds == 1:
            return label
        seeds = f"mean ± std, {self.seeds} seeds"
        return seeds if label is None else f"{label} ({seeds})"


def relative(costs: Sequence[float], full: float) -> list[float]:
    """Costs relative to that of full depth, rounded, so that equal ones are one cost.

    Example:
        >>> relative([1.2, 3.0], full=6.0)
        [0.2, 0.5]
    """
    return [round(cost / full, 12) for cost in costs]


def at_equal_costs(
    argument: str, costs: Sequence[Sequence[float]], scores: Sequence[Sequence[float]]
) -> tuple[list[float], Band]:
    """Compare the scores of seeds where all seeds have been: at a fine grid of costs, and at every measured one.

    Args:
        argument: The argument, for messages.
        costs: A series a seed.
        scores: The score at each of these costs; between two of them it is linear, see `interpolate`.

    Returns:
        The costs, rising, and the scores over the seeds there.

    Raises:
        ArgumentError: Seeds that share no cost.
    """
    low, high = max(map(min, costs)), min(map(max, costs))
    if low > high:
        raise ArgumentError(
            argument,
            expected="seeds whose costs overlap",
            got=f"a seed that begins at {low:.3g} of full depth, and one that ends at {high:.3g}",
            remedy="Sweep a wider grid, or draw each seed under a name of its own.",
        )
    grid = [low + (high - low) * place / _GRID for place in range(1, _GRID)]
    measured = [cost for each in costs for cost in each]
    at = sorted({low, high, *(cost for cost in (*grid, *measured) if low < cost < high)})
    return at, Band.of([interpolate(cost, score, at) for cost, score in zip(costs, scores, strict=True)])
