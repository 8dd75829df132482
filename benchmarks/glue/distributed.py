"""Processes that train one run together (under `torchrun`), and processes that must not be at one place together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed
from filelock import FileLock, Timeout

from ponder.errors import ArgumentError, PonderError

__all__ = ["BusyError", "count", "hold", "is_first", "share", "wait"]


class BusyError(PonderError):
    """Another process is at work there."""


def count() -> int:
    """How many processes train together: each does a part of every batch, and the first alone writes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes; the only one does."""
    return int(os.environ.get("RANK", "0")) == 0


def share(batch_size: int) -> int:
    """What one process does of a batch."""
    if batch_size % count():
        expected = f"a multiple of the {count()} processes"
        remedy = "Change one of them: all processes together work on one batch."
        raise ArgumentError("batch_size", expected=expected, got=batch_size, remedy=remedy)
    return batch_size // count()


def wait() -> None:
    """Wait for the other processes, where there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


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
