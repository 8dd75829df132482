"""Section 7: a stream of 1,000 to 1,000,000 rows takes time in proportion, and memory that does not grow.

One process, one small encoder. A run of each size stands between two runs of the smallest, so that what else the
machine does cancels out; memory is what the process holds after a run, relative to before all but the first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ponder
from benchmarks.speed.figures import Options, figure, not_measured
from benchmarks.speed.forced import Forced
from benchmarks.speed.streaming import exits
from benchmarks.speed.subjects import albert_base
from ponder.cost import WallClock

__all__ = ["measure", "resident", "rows_of", "streamed"]

SECTION = "scale"
SIZES = (1_000, 10_000, 100_000, 1_000_000)
WITHIN = 0.05
LENGTH, DISTINCT, BATCH = 16, 1_009, 64
_STATUS = Path("/proc/self/statm")
_PAGE = 4096


def measure(options: Options) -> list[dict[str, Any]]:
    """The section's figures."""
    sizes = SIZES[:2] if options.quick else SIZES
    model = albert_base(Options(quick=True, device=options.device)).wrapped.ponder
    policy = Forced(exits("early-heavy", model.num_steps, DISTINCT))
    reference = sizes[1]
    streamed(model, policy, sizes[1])  # whatever is allocated once is allocated now
    memory, found = resident(), []
    for size in sizes:
        repeats = options.pairs if size <= reference else 1
        ratios = []
        for _ in range(repeats):
            before, seconds, after = (streamed(model, policy, rows) / rows for rows in (reference, size, reference))
            ratios.append(2 * seconds / (before + after))
        found += _figures(size, WallClock.of(ratios), memory, reference)
    return found


def streamed(model: ponder.PonderWrapper, policy: ponder.policies.ExitPolicy, rows: int) -> float:
    """Seconds of a stream of `rows` rows, none of which is kept."""
    start, answered = time.perf_counter(), 0
    with ponder.StreamEngine(model, policy, max_batch=BATCH) as engine:
        for _ in engine.run(rows_of(rows)):
            answered += 1
    assert answered == rows
    return time.perf_counter() - start


def rows_of(count: int) -> Iterator[Tensor]:
    """Token ids of so many rows, made as they are asked for."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randint(5, 1_000, (DISTINCT, LENGTH), generator=generator)
    for row in range(count):
        yield block[row % DISTINCT]


def resident() -> int | None:
    """Bytes of memory that this process holds now; None where the system does not say."""
    return int(_STATUS.read_text().split()[1]) * _PAGE if _STATUS.exists() else None


def _figures(size: int, clock: WallClock, before: int | None, reference: int) -> list[dict[str, Any]]:
    case, now = f"{size:,} rows", resident()
    least, most = (None, None) if size == reference else (1 - WITHIN, 1 + WITHIN)
    found = [
        figure(SECTION, case, f"time per row ÷ of {reference:,} rows", clock, at_least=least, at_most=most, rows=size)
    ]
    if now is None or before is None:
        return [*found, not_measured(SECTION, f"{case}, memory", "this system has no /proc")]
    return [*found, figure(SECTION, case, "memory ÷ memory before", now / before, at_most=1 + WITHIN, bytes=now)]
