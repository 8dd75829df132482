"""Processes that must not be at one place together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ponder.errors import PonderError

__all__ = ["BusyError", "hold"]


class BusyError(PonderError):
    """Another process is at work there."""


@contextmanager
def hold(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock `path`, which the system frees when its holder dies; the file is there only while somebody does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout as error:
        held = f"{path.stem}: another process is at work on it (it holds {path}). Wait until it ends."
        raise BusyError(held) from error
    try:
        yield
    finally:
        # Still held: whoever waits for the removed file sees that it is gone, and makes it anew (filelock does).
        path.unlink(missing_ok=True)
        lock.release()
