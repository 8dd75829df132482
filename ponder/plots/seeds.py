"""Seeds: one run or several of the same kind, and their mean and standard deviation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.recording import Recording
from ponder.plots.protocols import Run

__all__ = ["Band", "as_items", "as_runs", "same"]

T = TypeVar("T")


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


def as_items(argument: str, data: object, kind: type, name: str) -> list[Any]:
    """One item, or a sequence of one item a seed, as a list.

    Args:
        argument: The argument, for messages.
        data: What was passed.
        kind: What each item must be.
        name: What users call it.

    Raises:
        ArgumentError: There is none.
        ArgumentTypeError: Something of another kind.
    """
    items = [data] if isinstance(data, kind) else list(data) if isinstance(data, Sequence) else [data]
    if not items:
        raise ArgumentError(argument, expected="at least one", got="none", remedy="Pass one, or one a seed.")
    for item in items:
        if not isinstance(item, kind):
            raise ArgumentTypeError(
                argument,
                expected=f"a {name}, or a sequence of them, one a seed",
                got=type(item).__name__,
                remedy=f"Pass a ponder.{name}.",
            )
    return items


def as_runs(data: Run | Sequence[Run]) -> list[Run]:
    """Trajectories that have rows, all over the same number of steps."""
    items: list[Run] = as_items("trajectories", data, Recording, "Trajectory")
    same("trajectories", "number of steps", items, lambda item: item.num_steps)
    if not all(len(item) for item in items):
        raise ArgumentError("trajectories", expected="at least one row in each", got="none", remedy="Unroll some rows.")
    return items


def same(argument: str, what: str, items: Sequence[T], value: Callable[[T], Hashable]) -> None:
    """Refuse items that differ in something which a mean over them needs to be one."""
    values = list(dict.fromkeys(map(value, items)))
    if len(values) > 1:
        raise ArgumentError(
            argument,
            expected=f"the same {what} in all",
            got=" and ".join(map(str, values[:2])),
            remedy="Draw different ones by separate calls on the same ax.",
        )
