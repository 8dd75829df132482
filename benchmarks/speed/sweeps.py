"""Section 9: a thousand values of a threshold on a recorded trajectory, and against replaying value by value."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import ponder
from benchmarks.speed.figures import Options, figure
from benchmarks.speed.timing import interleaved, ratio
from ponder.cost import WallClock
from ponder.policies import Confidence, Entropy, ExitPolicy, Patience, Quantile

__all__ = ["SECTION", "measure", "recorded"]

SECTION = "sweeps"
ROWS, STEPS, CLASSES, VALUES = 10_000, 12, 3, 1000
REPLAYED = 20
FAMILIES: dict[str, tuple[Callable[[float], ExitPolicy], float]] = {
    "Quantile": (Quantile, 2.0),
    "Confidence": (Confidence, 2.0),
    "Entropy": (Entropy, 2.0),
    "Quantile | Patience(3)": (lambda q: Quantile(q) | Patience(3), 10.0),
    "Confidence & Patience(2)": (lambda c: Confidence(c) & Patience(2), 10.0),
}


def measure(options: Options) -> list[dict[str, Any]]:
    """The section's figures: seconds of a sweep, and replays of as many values ÷ one sweep."""
    rows, count = (500, 50) if options.quick else (ROWS, VALUES)
    trajectory, found = recorded(rows), []
    grid = torch.linspace(0.0, 1.0, count).tolist()
    for name, (family, goal) in FAMILIES.items():
        some = grid[:: max(count // REPLAYED, 1)]
        calls: dict[str, Callable[[], object]] = {
            "sweep": partial(trajectory.sweep, family, grid),
            "replays": partial(_replays, trajectory, [family(value) for value in some]),
        }
        seconds = interleaved(calls, rounds=options.pairs)
        each, times = WallClock.of(seconds["sweep"]), ratio(seconds, "replays", "sweep")
        case = f"{name}, {count:,} values, {rows:,} rows × {STEPS} steps × {CLASSES} classes"
        found.append(figure(SECTION, case, "seconds of a sweep", each, at_most=goal))
        scaled = WallClock(*(value * count / len(some) for value in (times.median, times.low, times.high)))
        found.append(figure(SECTION, case, "replays of all values ÷ sweep", scaled, replayed=len(some)))
    return found


def _replays(trajectory: ponder.Trajectory, policies: list[ExitPolicy]) -> None:
    for policy in policies:
        trajectory.replay(policy)


def recorded(rows: int) -> ponder.Trajectory:
    """A random trajectory of a classifier."""
    generator = torch.Generator().manual_seed(0)
    return ponder.Trajectory(
        outputs=torch.randn(rows, STEPS, CLASSES, generator=generator),
        hazard_logits=torch.randn(rows, STEPS, generator=generator) - 2.0,
        row_ids=torch.arange(rows),
        labels=torch.randint(CLASSES, (rows,), generator=generator),
        task="classification",
    )
