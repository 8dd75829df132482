"""Votes and numbers of many members as the outputs of steps: shares and means, so far."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ponder._utils.checks import check_int
from ponder.errors import ArgumentError

__all__ = ["block_ends", "log_shares", "running_shares", "running_sums", "standard_error"]

Floats: TypeAlias = NDArray[Any]
_NO_VOTE = 1e-9
"""The share of a class without a vote: the logarithm of 0 is not finite."""


def running_shares(votes: ArrayLike, block: int = 1, num_classes: int | None = None) -> Floats:
    """Return the shares of the classes after each block of members, `(items, steps, classes)`.

    Args:
        votes: Class numbers, `(items, members)`, or probabilities, `(items, members, classes)`.
        block: Members of a step; the last step has those that are left.
        num_classes: Number of classes; by default the highest number plus 1.
    """
    check_int("block", block)
    given = np.asarray(votes)
    if given.ndim == 2:
        given = _one_hot(given, num_classes)
    if given.ndim != 3 or not given.size:
        raise _wrong_votes(f"shape {given.shape}")
    members = given.shape[1]
    ends = block_ends(members, block)
    of_blocks = np.add.reduceat(given, ends - np.diff(ends, prepend=0), axis=1, dtype=np.float64)
    shares: Floats = of_blocks.cumsum(axis=1) / ends[:, None]
    return shares


def log_shares(shares: Floats) -> Floats:
    """Return the logarithms of shares; a class without a vote has a share of 1e-9."""
    logarithms: Floats = np.log(np.maximum(shares, _NO_VOTE))
    return logarithms


def running_sums(values: ArrayLike, block: int = 1) -> Floats:
    """Return sums of numbers, and of their squares, after each block, `(items, steps, 2)`.

    Args:
        values: The numbers, `(items, members)`.
        block: Members of a step; the last step has those that are left.
    """
    check_int("block", block)
    numbers = np.asarray(values, dtype=np.float64)
    ends = block_ends(numbers.shape[1], block)
    both = np.stack([numbers, numbers**2], axis=-1)
    sums: Floats = both.cumsum(axis=1)[:, ends - 1]
    return sums


def block_ends(members: int, block: int) -> NDArray[Any]:
    """Return the number of members after each step, `(steps,)`."""
    return np.arange(block, members + block, block).clip(max=members)


def standard_error(sums: Floats, taken: Any) -> Floats:
    """Return the standard error of means, `(…, 1)`; infinite for a single number.

    Args:
        sums: Sums of numbers and of their squares, `(…, 2)`.
        taken: How many numbers were added.
    """
    taken = np.asarray(taken, dtype=np.float64)
    variance = np.maximum(sums[..., 1] - sums[..., 0] ** 2 / taken, 0.0) / np.maximum(taken - 1, 1)
    error: Floats = np.where(taken > 1, np.sqrt(variance / taken), np.inf)[..., None]
    return error


def _one_hot(votes: NDArray[Any], num_classes: int | None) -> Floats:
    """Return 1 for the class that each member votes for, `(items, members, classes)`."""
    if votes.dtype.kind not in "iu" or not votes.size or votes.min() < 0:
        raise _wrong_votes(f"{votes.dtype}, shape {votes.shape}")
    highest = int(votes.max())
    if num_classes is None:
        num_classes = max(highest + 1, 2)
    if highest >= num_classes:
        raise _wrong_votes(f"class {highest} of {num_classes} classes")
    of_members: Floats = np.eye(num_classes, dtype=np.float32)[votes]
    return of_members


def _wrong_votes(got: str) -> ArgumentError:
    return ArgumentError(
        "votes",
        expected="class numbers from 0, (items, members), or probabilities "
        "(items, members, classes)",
        got=got,
        remedy="Number the classes: np.unique(answers, return_inverse=True).",
    )
