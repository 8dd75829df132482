"""Interleaved timings: every call once a round, in turn, so that what else the machine does meets all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from ponder.cost import WallClock
from ponder.cost.speed import seconds

__all__ = ["Seconds", "interleaved", "ratio"]

Seconds = Mapping[str, list[float]]

MOST_ROUNDS = 21


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 3,
    budget: float = 0.0,
    least: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
) -> Seconds:
    """Seconds of every call in every round.

    Args:
        calls: What is timed, by name, after one run each to warm up. Every other round goes through them backwards.
        rounds: How many rounds there are at least.
        budget: Seconds that may be spent: more rounds are run within it, up to 21.
        least: A timing lasts so many seconds at least: quick calls are repeated, all of them as often.
        clock: Gives seconds; `time.process_time` counts those of this process alone, on a machine that does other work.

    Returns:
        One number a round for each name, the seconds of one run of the call.
    """
    first = {name: seconds(call, 1, clock) for name, call in calls.items()}
    repeats = max(1, math.ceil(least / max(min(first.values()), 1e-9)))
    rounds = max(rounds, min(MOST_ROUNDS, int(budget / (repeats * sum(first.values())))))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            found[name].append(seconds(calls[name], repeats, clock))
    return found


def ratio(took: Seconds, over: str, under: str) -> WallClock:
    """Seconds of `over` ÷ seconds of `under`: median and range over the rounds."""
    return WallClock.of([a / b for a, b in zip(took[over], took[under], strict=True)])
