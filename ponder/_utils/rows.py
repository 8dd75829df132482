"""Identity of rows: content hashes of texts, keys of rows that hold the same text, and splits of rows at random."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from ponder._utils.seeds import uniform
from ponder.errors import ArgumentError

Ints = np.ndarray[Any, np.dtype[np.int64]]

__all__ = ["CHOOSE_AND_CERTIFY", "class_numbers", "content_ids", "row_keys", "split"]

CHOOSE_AND_CERTIFY = (1 / 3, 2 / 3)
"""Shares of the rows that choose a policy and that certify it, if no heads have to learn. All that
certify agree on them: so a row that chose for one model never certifies another that is made of
it."""
_APART = -0x2E4AB5CD2E6D12FD  # an odd number far from small ones, by which rows of one id differ


def content_ids(texts: Iterable[str | Sequence[str]]) -> Ints:
    """Return a stable hash of each text, or pair of texts, `(rows,)` int64.

    Example:
        >>> content_ids(["yes", "no", "yes", ("a question", "an answer")])[[0, 2]]
        array([-7891968539030933039, -7891968539030933039])
    """
    rows = (text if isinstance(text, str) else "\x1f".join(map(str, text)) for text in texts)
    digests = b"".join(blake2b(row.encode(), digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def row_keys(ids: Any) -> Ints:
    """Return a key of each row, `(rows,)` int64: its id, and for one that comes again its id and its number.

    So a text that comes three times in a file is three rows, and each is dealt to a side, or drawn,
    by itself. The first row of an id has the id as its key.

    Args:
        ids: Row ids, `(rows,)` integers, among which equal ones are equal contents.
    """
    values = np.asarray(ids).astype(np.int64)
    order = np.argsort(values, kind="stable")
    _, starts, counts = np.unique(values[order], return_index=True, return_counts=True)
    number = np.empty(len(values), dtype=np.int64)  # of a row among those with its id, from 0
    number[order] = np.arange(len(values)) - np.repeat(starts, counts)
    keys: Ints = values + number * _APART
    return keys


def split(ids: Any, shares: Sequence[float] = (0.5, 0.5), seed: int = 0) -> list[Ints]:
    """Split rows at random into disjoint sides.

    Rows are dealt as rows: those of a text that comes again may go to several sides, as they come
    in the traffic before and after a certificate (see `ponder.calibration.repeats`). The order in
    which rows are dealt is a function of the seed and their `row_keys`, so a row that is added
    moves few others.

    Args:
        ids: Row ids, `(rows,)` integers, or the texts themselves.
        shares: Relative sizes of the sides.
        seed: Seed of the split.

    Returns:
        The rows of each side, as rising positions.

    Example:
        >>> fitting, certifying = ponder.split([7, 8, 9, 7, 10, 11, 12, 13])
        >>> fitting, certifying
        (array([1, 3, 6, 7]), array([0, 2, 4, 5]))
    """
    if len(ids) and isinstance(ids[0], str | tuple | list):
        ids = content_ids(ids)
    keys = row_keys(ids)
    order = np.argsort(uniform(seed, keys), kind="stable")
    bounds = np.cumsum(shares)[:-1] / np.sum(shares) * len(keys)
    side = np.empty(len(keys), dtype=np.int64)
    side[order] = np.searchsorted(bounds, np.arange(len(keys)) + 0.5, side="right")
    return [np.flatnonzero(side == one) for one in range(len(shares))]


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
