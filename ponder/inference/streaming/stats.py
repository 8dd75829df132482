"""What the engine has done so far, in bounded memory."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass

import torch

__all__ = ["StreamMetrics", "StreamStats"]

_LATENCIES_KEPT = 4096


@dataclass(frozen=True)
class StreamStats:
    """A snapshot of an engine.

    Args:
        steps: Batched steps that ran.
        row_steps: Rows that they carried, added up.
        occupancy: row_steps / (steps · max_batch), in [0, 1]; 0 before the first step.
        waiting: Rows that were accepted and have not begun.
        running: Rows between their first step and their exit.
        done: Rows answered by an exit.
        timed_out: Rows that met their deadline, answered from the step they had reached or, before the first, by
            `TimeoutError`.
        failed: Rows that ended in another error.
        cancelled: Rows whose future was cancelled.
        latency: Quantiles of seconds from submission to answer over the last 4,096 answers: 0.5, 0.95, 0.99; empty
            before the first.

    Example:
        >>> with ponder.StreamEngine(model, policies.FixedStep(2), max_batch=10) as engine:
        ...     answers = list(engine.run(inputs[:20]))
        >>> engine.stats.done, engine.stats.row_steps
        (20, 40)
    """

    steps: int
    row_steps: int
    occupancy: float
    waiting: int
    running: int
    done: int
    timed_out: int
    failed: int
    cancelled: int
    latency: dict[float, float]


class StreamMetrics:
    """What is counted while an engine runs. Any thread may tell of an end; only the engine's own tells of steps."""

    def __init__(self) -> None:
        self.steps = 0
        self.row_steps = 0
        self.ends: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=_LATENCIES_KEPT)
        self._lock = threading.Lock()

    def step(self, rows: int) -> None:
        """Count a step that ran."""
        self.steps += 1
        self.row_steps += rows

    def end(self, how: str, latency: float) -> None:
        """Count a row that ended: "done", "timed_out", "failed" or "cancelled"."""
        with self._lock:
            self.ends[how] += 1
            if how in ("done", "timed_out"):
                self._latencies.append(latency)

    def snapshot(self, *, waiting: int, running: int, max_batch: int) -> StreamStats:
        """Put the counts so far into a snapshot."""
        seconds = torch.tensor(list(self._latencies), dtype=torch.float64)
        quantiles = (0.5, 0.95, 0.99) if len(seconds) else ()
        return StreamStats(
            steps=self.steps,
            row_steps=self.row_steps,
            occupancy=self.row_steps / (self.steps * max_batch) if self.steps else 0.0,
            waiting=waiting,
            running=running,
            done=self.ends["done"],
            timed_out=self.ends["timed_out"],
            failed=self.ends["failed"],
            cancelled=self.ends["cancelled"],
            latency={q: float(seconds.quantile(q)) for q in quantiles},
        )
