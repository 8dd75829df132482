"""A discrete-event simulation of two servers, for loads and batch sizes that the machine at hand cannot run.

Rows arrive one by one and need so many steps. `stream` fills every free slot before every step; `compaction` takes a
batch of what waits, shrinks it as rows leave, and takes the next when it is empty. A step takes as long as was
measured for its number of rows; nothing else takes time.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Costs", "Row", "compaction", "poisson", "quantile", "stream"]


@dataclass(frozen=True)
class Row:
    """A row that comes at a time and needs some steps.

    Args:
        arrival: When it comes, in seconds.
        steps: How many steps it needs.
    """

    arrival: float
    steps: int


class Costs:
    """Seconds of a step by its number of rows: measured for some, linear between and beyond them.

    Args:
        measured: Seconds by number of rows, for two numbers or more.

    Example:
        >>> cost = Costs({1: 2.0, 5: 4.0})
        >>> cost(1), cost(3), cost(9)
        (2.0, 3.0, 6.0)
    """

    def __init__(self, measured: Mapping[int, float]) -> None:
        self._points = sorted(measured.items())

    def __call__(self, rows: int) -> float:
        """Seconds of a step of `rows` rows, ≥ 1."""
        pairs = list(itertools.pairwise(self._points))
        (low, before), (high, after) = next((pair for pair in pairs if rows <= pair[1][0]), pairs[-1])
        return before + (after - before) * (rows - low) / (high - low)


def poisson(rows: int, exits: Sequence[int], rate: float, seed: int = 0) -> list[Row]:
    """Rows of a Poisson process.

    Args:
        rows: How many.
        exits: Their steps, in turn, from the first again where there are fewer.
        rate: Rows a second.
        seed: Seed of the arrivals.
    """
    rng, now, made = random.Random(seed), 0.0, []
    for position in range(rows):
        now += rng.expovariate(rate)
        made.append(Row(now, exits[position % len(exits)]))
    return made


def stream(rows: Sequence[Row], batch: int, cost: Callable[[int], float]) -> list[float]:
    """Latencies in seconds, in the order of arrival, where waiting rows take free slots before every step.

    Args:
        rows: The rows, in the order of arrival.
        batch: Slots.
        cost: Seconds of a step, by its number of rows.

    Example:
        >>> stream([Row(0.0, 2), Row(0.5, 1), Row(0.6, 1)], 2, lambda rows: 1.0)
        [2.0, 1.5, 2.4]
    """
    latencies = [0.0] * len(rows)
    running: dict[int, int] = {}
    now, coming = 0.0, 0
    while running or coming < len(rows):
        if not running:
            now = max(now, rows[coming].arrival)
        while coming < len(rows) and len(running) < batch and rows[coming].arrival <= now:
            running[coming] = rows[coming].steps
            coming += 1
        now += cost(len(running))
        running = _advance(running, rows, now, latencies)
    return latencies


def compaction(rows: Sequence[Row], batch: int, cost: Callable[[int], float]) -> list[float]:
    """Latencies as of `stream`, where `batch` waiting rows at most run to their last exit before the next begin.

    Example:
        >>> compaction([Row(0.0, 2), Row(0.5, 1), Row(0.6, 1)], 2, lambda rows: 1.0)
        [2.0, 2.5, 2.4]
    """
    latencies = [0.0] * len(rows)
    now, coming = 0.0, 0
    while coming < len(rows):
        now = max(now, rows[coming].arrival)
        running: dict[int, int] = {}
        while coming < len(rows) and len(running) < batch and rows[coming].arrival <= now:
            running[coming] = rows[coming].steps
            coming += 1
        while running:
            now += cost(len(running))
            running = _advance(running, rows, now, latencies)
    return latencies


def quantile(numbers: Sequence[float], q: float) -> float:
    """The smallest of the numbers that a share `q` of them does not exceed.

    Example:
        >>> quantile([3.0, 1.0, 2.0, 4.0], 0.5)
        2.0
    """
    return sorted(numbers)[max(math.ceil(q * len(numbers)) - 1, 0)]


def _advance(running: dict[int, int], rows: Sequence[Row], now: float, latencies: list[float]) -> dict[int, int]:
    """One step, finished at `now`: the rows that go on, with the steps that they still need."""
    for number, left in running.items():
        if left == 1:
            latencies[number] = now - rows[number].arrival
    return {number: left - 1 for number, left in running.items() if left > 1}
