"""What `ponder.Live` adds to the time of a reference."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ponder.cascade.asking import Asking
from ponder.cascade.live import Live

__all__ = ["Overhead", "overhead"]


@dataclass(frozen=True)
class Overhead:
    """The milliseconds that a text costs beyond the call of its reference.

    Args:
        wall: By the clock: all seconds, less those of the calls alone with no time between them.
        processor: On the processor, of all threads.
    """

    wall: float
    processor: float


def overhead(path: Path, texts: int, seconds: float, concurrency: int) -> Overhead:
    """Return what `Live` adds to each text on a fresh file.

    Args:
        path: The SQLite file to write.
        texts: How many texts are answered, all by the reference.
        seconds: What a call takes.
        concurrency: Calls at once.
    """

    def ask(rows: Sequence[str]) -> list[str]:
        time.sleep(seconds)
        return ["label"] * len(rows)

    rows = [f"text number {number}" for number in range(texts)]
    with Live(ask, 0.0, path=path, asking=Asking(concurrency=concurrency)) as live:
        start = time.perf_counter()
        start_of_processor = time.process_time()
        live.answer(rows)
        processor = time.process_time() - start_of_processor
        wall = time.perf_counter() - start - texts * seconds / concurrency
    return Overhead(round(1000 * wall / texts, 3), round(1000 * processor / texts, 3))
