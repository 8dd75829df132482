"""One process at a time at one place: a lock that the system frees when its holder dies, so that none is ever stale."""

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
    """Hold the lock `path`; the file is there only while somebody does.

    Args:
        path: The lock file; its folder is made.
        wait: Wait until the lock is free, or raise.

    Raises:
        BusyError: Another process holds it, and `wait` is off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(
            f"{path.stem}: another process is at work on it (it holds {path}). Wait until it ends."
        ) from error
    try:
        yield
    finally:
        # Still held: whoever waits for the removed file sees that it is gone, and makes it anew (filelock does).
        path.unlink(missing_ok=True)
        lock.release()
