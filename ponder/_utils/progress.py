"""A progress bar with what is installed: rich, tqdm, or a plain line on the standard error."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(label: str, total: int | None, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Give a function that is told how many more are done.

    Args:
        label: What is done.
        total: How many there are, if that is known.
        shown: Nothing is shown, and nothing imported, where False.
    """
    if not shown:
        yield lambda count: None
    elif importlib.util.find_spec("rich") is not None:
        rich: Any = importlib.import_module("rich.progress")
        console: Any = importlib.import_module("rich.console").Console(stderr=True)
        with rich.Progress(*rich.Progress.get_default_columns(), rich.MofNCompleteColumn(), console=console) as bar:
            task = bar.add_task(label, total=total)
            yield lambda count: bar.advance(task, count)
    elif importlib.util.find_spec("tqdm") is not None:
        with importlib.import_module("tqdm").tqdm(desc=label, total=total, file=sys.stderr) as bar:
            yield bar.update
    else:
        with _plain(label, total) as advance:
            yield advance


@contextmanager
def _plain(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        print(f"\r{label}: {done}" + ("" if total is None else f"/{total}"), end="", file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        print(file=sys.stderr)
