"""Identity of rows: content hashes of texts, keys of repeated rows, and random splits.

Two rows with the same text have one content id and two keys. Splits go by keys, so that repeats are
assigned to the sides independently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, TypeAlias, TypeGuard, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ponder._utils.seeds import uniform
from ponder.errors import ArgumentError, ArgumentTypeError

Ints: TypeAlias = NDArray[np.int64]
"""Ids, keys or positions of rows."""
Text: TypeAlias = str | tuple[str, str]
"""A text, or a pair of texts."""
Row = TypeVar("Row")

__all__ = [
    "CHOOSE_AND_CERTIFY",
    "Ints",
    "Text",
    "check_rows",
    "class_numbers",
    "content_ids",
    "one_line",
    "row_keys",
    "split",
]

CHOOSE_AND_CERTIFY = (1 / 3, 2 / 3)
"""Shares of the rows that choose a policy and that certify it, if no heads are to be trained. They
are the same wherever a policy is certified, so that a row that chose for one model never certifies
another model that was made from it."""
_KEY_STEP = -0x2E4AB5CD2E6D12FD  # odd and large, so that keys of repeats meet no other id


def content_ids(texts: Iterable[str | Sequence[str]]) -> Ints:
    """Return a stable hash of each text, or pair of texts, `(rows,)` int64.

    Example:
        >>> content_ids(["yes", "no", "yes", ("a question", "an answer")])[[0, 2]]
        array([-7891968539030933039, -7891968539030933039])
    """
    digests = bytearray()
    for text in texts:
        if not isinstance(text, str):
            text = "\x1f".join(map(str, text))
        digests += blake2b(text.encode(), digest_size=8).digest()
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def listed(argument: str, rows: Iterable[Row]) -> list[Row]:
    """Return rows as a list: a Series has an index, and generators have no length.

    Raises:
        ArgumentTypeError: `rows` is one text, a mapping or a table, whose items are no rows.

    Example:
        >>> listed("texts", "hello")
        Traceback (most recent call last):
        ponder.errors.ArgumentTypeError: texts: expected a list, array, Series or generator of rows;
            got a str. Pass [text], or one column: table["text"].
    """
    check_rows(argument, rows)
    return list(rows)


def check_rows(argument: str, rows: object) -> None:
    """Accept rows; refuse one text, a mapping and a table, whose items are no rows."""
    if isinstance(rows, str | bytes | Mapping) or hasattr(rows, "columns"):
        raise ArgumentTypeError(
            argument,
            expected="a list, array, Series or generator of rows",
            got=f"a {type(rows).__name__}",
            remedy='Pass [text], or one column: table["text"].',
        )


def one_line(text: str | Sequence[str]) -> str:
    """Return a text, or a pair of texts, as it is shown in a table."""
    if isinstance(text, str):
        return text
    return " ‖ ".join(text)


def row_keys(ids: ArrayLike) -> Ints:
    """Return a key of each row, `(rows,)` int64: a function of its id and its number among repeats.

    So a text that occurs three times in a file is three rows, and each is assigned to a side
    independently. The key of the first row of an id is the id.

    Args:
        ids: Row ids, `(rows,)` integers; equal ids are equal contents.
    """
    values = np.asarray(ids).astype(np.int64)
    order = np.argsort(values, kind="stable")
    _, starts, counts = np.unique(values[order], return_index=True, return_counts=True)
    # In sorted order the rows of an id are side by side, in the order of the file.
    first_of_id = np.repeat(starts, counts)
    earlier = np.empty(len(values), dtype=np.int64)  # number of earlier rows with the same id
    earlier[order] = np.arange(len(values)) - first_of_id
    keys: Ints = values + earlier * _KEY_STEP
    return keys


def split(
    ids: ArrayLike | Sequence[str | Sequence[str]],
    shares: Sequence[float] = (0.5, 0.5),
    seed: int = 0,
) -> list[Ints]:
    """Split rows at random into disjoint sides.

    The rows of a text that occurs more than once may go to several sides, as they occur in the
    traffic before and after a certificate (see `ponder.statistics.repeats`). The side of a row is
    a function of the seed and of the order of all `row_keys`, so an added row moves few others.

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
    if _are_texts(ids):
        ids = content_ids(ids)
    keys = row_keys(ids)
    count = len(keys)
    # Rows are sorted by a random number of each, and cut where the shares end.
    order = np.argsort(uniform(seed, keys), kind="stable")
    bounds = np.cumsum(shares)[:-1] / np.sum(shares) * count
    side = np.empty(count, dtype=np.int64)
    side[order] = np.searchsorted(bounds, np.arange(count) + 0.5, side="right")
    return [np.flatnonzero(side == one) for one in range(len(shares))]


def _are_texts(ids: object) -> TypeGuard[Sequence[str | Sequence[str]]]:
    """Return whether rows are texts, or pairs of texts, and not ids."""
    rows: Any = ids  # a list, or an array or column of either
    return len(rows) > 0 and isinstance(rows[0], str | tuple | list)


def class_numbers(
    labels: Iterable[object], names: Sequence[str], argument: str = "--labels"
) -> list[int]:
    """Return labels, which are names of the classes or their numbers, as numbers.

    Example:
        >>> class_numbers(["yes", "no"], ["no", "yes"]), class_numbers(["1", 0], ["no", "yes"])
        ([1, 0], [1, 0])
    """
    texts = [str(label) for label in labels]
    numbers = {name: place for place, name in enumerate(names)}
    if not set(texts) <= numbers.keys():
        numbers = {str(place): place for place in range(len(names))}
    unknown = sorted(set(texts) - numbers.keys())
    if unknown:
        raise ArgumentError(
            argument,
            expected=f"names of the model's {len(names)} classes ({', '.join(names[:3])}, …), "
            "or their numbers",
            got=repr(unknown[0]),
            remedy="Name the right ones.",
        )
    return [numbers[text] for text in texts]
