"""Batches: how large one may be, the one rule that fills it, and a data set cut into them.

`ponder.predict`, `PonderWrapper.record` and `ponder.StreamEngine` share what is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ponder._utils.validation import check_int
from ponder.errors import ArgumentError
from ponder.inference.examples import Example
from ponder.parts.padding import Padding

__all__ = ["BatchLimits", "Filling", "batches", "by_length"]


@dataclass(frozen=True)
class BatchLimits:
    """How large a batch may be.

    Args:
        rows: Rows, or None.
        tokens: Rows times the longest, padding included, or None.
    """

    rows: int | None
    tokens: int | None

    @classmethod
    def checked(cls, argument: str, rows: int | None, tokens: int | None, padding: Padding | None) -> BatchLimits:
        """The limits that a caller gives; 32 rows where he gives none.

        Args:
            argument: Name of the argument that `rows` came by.
            rows: Rows of a batch at most.
            tokens: Positions of a batch at most, the argument ``max_tokens``.
            padding: Where the model's lengths lie, or None.
        """
        for name, limit in ((argument, rows), ("max_tokens", tokens)):
            if limit is not None:
                check_int(name, limit, remedy=f"Pass {name}=64, say.")
        if tokens is not None and padding is None:
            raise ArgumentError(
                "max_tokens",
                expected="None for a model without lengths",
                got=tokens,
                remedy=f"Build the model with padding=ponder.Padding(…), or limit rows with {argument}.",
            )
        return cls(32 if rows is None and tokens is None else rows, tokens)


class Filling:
    """A batch that is being filled: rows are taken in as long as they fit; a row alone always does.

    Args:
        limits: How large the batch may be.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits, self._rows, self._longest = limits, 0, 0

    def take(self, length: int) -> bool:
        """Take in a row of a length if it fits, and say whether it did."""
        rows, longest = self._rows + 1, max(self._longest, length)
        limits = self._limits
        if self._rows and (
            (limits.rows is not None and rows > limits.rows)
            or (limits.tokens is not None and rows * longest > limits.tokens)
        ):
            return False
        self._rows, self._longest = rows, longest
        return True

    def take_first(self, lengths: Sequence[int]) -> int:
        """Take in the first of some rows, as many as fit, and say how many; at once where only their number counts."""
        if self._limits.tokens is None and self._limits.rows is not None:
            count = min(len(lengths), self._limits.rows - self._rows)
            self._rows += count
            return count
        count = 0
        while count < len(lengths) and self.take(lengths[count]):
            count += 1
        return count


def by_length(examples: Iterable[Example]) -> list[Example]:
    """Rows that may share a batch together, in the order of their first; among them the longest first."""
    place: dict[Any, int] = {}
    keyed: list[tuple[int, int, int, Example]] = []
    for number, example in enumerate(examples):
        keyed.append((place.setdefault(example.signature, len(place)), -example.length, number, example))
    keyed.sort()
    return [example for _, _, _, example in keyed]


def batches(examples: Iterable[Example], limits: BatchLimits) -> Iterator[list[Example]]:
    """Cut rows, in their order, into batches within the limits; a row that is beyond them runs alone."""
    batch: list[Example] = []
    filling = Filling(limits)
    for example in examples:
        if batch and (example.signature != batch[0].signature or not filling.take(example.length)):
            yield batch
            batch, filling = [], Filling(limits)
        if not batch:
            filling.take(example.length)
        batch.append(example)
    if batch:
        yield batch
