"""Identity of rows: content hashes of texts, and splits that never put equal rows on two sides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from ponder._utils.seeds import uniform
from ponder.errors import ArgumentError

__all__ = ["CHOOSE_AND_CERTIFY", "class_numbers", "content_ids", "split"]

CHOOSE_AND_CERTIFY = (1 / 3, 2 / 3)
"""Shares of the rows that choose a policy and that certify it, if no heads have to learn. All that certify agree on
them: so a text that chose for one model never certifies another that is made of it."""


def content_ids(texts: Iterable[str | Sequence[str]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return a stable hash of each text, or pair of texts, `(rows,)` int64.

    Example:
        >>> content_ids(["yes", "no", "yes", ("a question", "an answer")])[[0, 2]]
        array([-7891968539030933039, -7891968539030933039])
    """
    rows = (text if isinstance(text, str) else "\x1f".join(map(str, text)) for text in texts)
    digests = b"".join(blake2b(row.encode(), digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def split(
    ids: Any, shares: Sequence[float] = (0.5, 0.5), seed: int = 0
) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """Split rows at random into disjoint sides; rows with equal ids go to the same side.

    The order in which ids are dealt is a function of (seed, id), so a row that is added moves few others.

    Args:
        ids: Row ids, `(rows,)` integers, or the texts themselves.
        shares: Relative sizes of the sides.
        seed: Seed of the split.

    Returns:
        The rows of each side, as rising positions.

    Example:
        >>> fitting, certifying = ponder.split([7, 8, 9, 7, 10, 11, 12, 13])
        >>> fitting, certifying
        (array([1, 2, 6, 7]), array([0, 3, 4, 5]))
    """
    if len(ids) and isinstance(ids[0], str | tuple | list):
        ids = content_ids(ids)
    unique, group, counts = np.unique(np.asarray(ids), return_inverse=True, return_counts=True)
    order = np.argsort(uniform(seed, unique.astype(np.int64)), kind="stable")
    middle = (
        np.cumsum(counts[order]) - counts[order] / 2
    )  # rows dealt when half of an id's rows are
    bounds = np.cumsum(shares)[:-1] / np.sum(shares) * len(group)
    side = np.empty(len(unique), dtype=np.int64)
    side[order] = np.searchsorted(bounds, middle, side="right")
    return [np.flatnonzero(side[group] == one) for one in range(len(shares))]


def class_numbers(
    labels: Iterable[object], names: Sequence[str], argument: str = "--labels"
) -> list[int]:
    """Return labels, which are names of the classes or their numbers, as numbers.

    Example:
        >>> class_numbers(["yes", "no"], ["no", "yes"]), class_numbers(["1", 0], ["no", "yes"])
        ([1, 0], [1, 0])
    """
    given, numbers = (
        [str(label) for label in labels],
        {name: place for place, name in enumerate(names)},
    )
    if not set(given) <= numbers.keys():
        numbers = {str(place): place for place in range(len(names))}
    if unknown := sorted(set(given) - numbers.keys()):
        expected = f"names of the model's {len(names)} classes ({', '.join(names[:3])}, …), or their numbers"
        raise ArgumentError(
            argument, expected=expected, got=repr(unknown[0]), remedy="Name the right ones."
        )
    return [numbers[label] for label in given]
