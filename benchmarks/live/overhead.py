"""What `ponder.Live` adds to the time of a reference."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ponder.cascade.asking import Asking
from ponder.cascade.live import Live

__all__ = ["overhead"]


def overhead(path: Path, texts: int, seconds: float, concurrency: int) -> float:
    """Return the seconds a text beyond those of the reference alone, on a fresh file.

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
        live.answer(rows)
        taken = time.perf_counter() - start
    return (taken - texts * seconds / concurrency) / texts
