"""Batches of rows of similar length: what is padded is computed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

__all__ = ["cut"]

_PADDED = 1.25


def cut(lengths: Sequence[int], max_batch: int, max_tokens: int | None = None) -> Iterator[slice]:
    """Cut rows, the longest first, into batches of at most `max_batch` rows and `max_tokens` positions.

    Of the positions, padding is at most a quarter of the others; a row that is too long is alone.
    """
    start = real = 0
    for place, length in enumerate(lengths):
        rows, real = place - start + 1, real + length
        positions = rows * lengths[start]
        if rows > 1 and (rows > max_batch or positions > min(_PADDED * real, max_tokens or math.inf)):
            yield slice(start, place)
            start, real = place, length
    if lengths:
        yield slice(start, len(lengths))
