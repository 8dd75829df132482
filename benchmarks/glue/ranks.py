"""The processes of one run under `torchrun`: each trains on a part of every batch, and the first alone writes."""

from __future__ import annotations

import os

import torch.distributed

from ponder.errors import ArgumentError

__all__ = ["is_first", "share", "wait"]


def is_first() -> bool:
    """Whether this process writes; the only one does."""
    return int(os.environ.get("RANK", "0")) == 0


def share(batch_size: int) -> int:
    """What one process does of a batch.

    Raises:
        ArgumentError: It cannot be divided evenly.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if batch_size % processes:
        raise ArgumentError(
            "batch_size",
            expected=f"a multiple of the {processes} processes",
            got=batch_size,
            remedy="Change one of them: all processes together work on one batch.",
        )
    return batch_size // processes


def wait() -> None:
    """Wait for the other processes, where there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
