"""Processes that train one run together, under `torchrun`."""

from __future__ import annotations

import os

import torch.distributed

from ponder.errors import ArgumentError

__all__ = ["count", "is_first", "share", "wait"]


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
