"""Batches of rows of similar length: what is padded is computed. Rows that remain are dealt anew to full batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder._utils.arrays import namespace

__all__ = ["Chunk", "cut"]

_PADDED = 1.15
Ints = NDArray[Any]


def cut(lengths: Sequence[int], max_batch: int, max_tokens: int | None = None) -> Iterator[slice]:
    """Cut rows, the longest first, into batches of at most `max_batch` rows and `max_tokens` positions.

    Of the positions, padding is at most 15% of the others; a row that is too long is alone.
    """
    start = real = 0
    for place, length in enumerate(lengths):
        rows, real = place - start + 1, real + length
        positions = rows * lengths[start]
        if rows > 1 and (
            rows > max_batch or positions > min(_PADDED * real, max_tokens or math.inf)
        ):
            yield slice(start, place)
            start, real = place, length
    if lengths:
        yield slice(start, len(lengths))


class Chunk:
    """Rows in several batches of similar length, which a loop runs as if they were one batch.

    Before each step the rows that remain may be dealt anew to full batches, so that the last rows of a batch do not run
    alone; in any case a batch narrows to its longest row. The batches are of PyTorch or of NumPy:
    `ponder.model.source.ModelSource`, or what an export computes.

    Args:
        batches: Batches before their first step, each with the numbers of its rows; a batch may hold more rows, which
            are not run.
        lengths: The length of each row, by its number.
        join: A function from parts of batches, each a batch with the places of its rows, and from the length of the
            longest row, to one batch of these rows.
        max_batch: Rows of a batch at most; None where rows stay in the batches that they are in.
        max_tokens: Positions of a batch at most.
        context: What policies read of each row, by name, in the order of the numbers.

    Attributes:
        rows: The numbers of the rows that remain, rising; all that is read is in their order.
    """

    def __init__(
        self,
        batches: Sequence[tuple[Sequence[int], Any]],
        lengths: Sequence[int],
        join: Callable[[list[tuple[Any, Ints]], int], Any],
        max_batch: int | None,
        max_tokens: int | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        self.rows, self.policy_context, self._lengths = (
            np.arange(len(lengths)),
            context or {},
            np.asarray(lengths),
        )
        self._join, self._limits, self._batches = (
            join,
            (max_batch, max_tokens),
            [batch for _, batch in batches],
        )
        self._number, self._place = (
            np.zeros_like(self.rows),
            np.zeros_like(self.rows),
        )  # where the states of each are
        for number, (rows, _) in enumerate(batches):
            self._number[rows], self._place[rows] = number, np.arange(len(rows))

    def advance(self, step: int) -> None:
        """Deal the rows that remain, and take them through a step."""
        (most, max_tokens), rows, batches = self._limits, self.rows, list[Any]()
        order = rows[
            np.lexsort(
                (self._place[rows], self._number[rows], (most is not None) * -self._lengths[rows])
            )
        ]
        if most is None:
            parts = np.split(order, np.flatnonzero(np.diff(self._number[order])) + 1)
        else:
            parts = [order[part] for part in cut(self._lengths[order].tolist(), most, max_tokens)]
        for part in parts:
            rows, own = self._parts(part)
            batches.append(self._join(own, int(self._lengths[rows].max())))
            batches[-1].advance(step)
            self._number[rows], self._place[rows] = len(batches) - 1, np.arange(len(rows))
        self._batches = batches

    def keep(self, index: Any) -> None:
        """Go on with some of the rows that remain."""
        self.rows = self.rows[np.asarray(index)]
        self.policy_context = {name: value[index] for name, value in self.policy_context.items()}

    def output(self) -> Any:
        """Return the outputs of the rows."""
        return self._read(lambda batch, _: batch.output())

    def output_of(self, index: Any) -> Any:
        """Return the outputs of some of the rows, at rising places among them, computed for no others."""
        return self._read(lambda batch, places: batch.output_of(places), index)

    def features(self) -> Any:
        """Return the features of the rows."""
        return self._read(lambda batch, _: batch.features())

    def hazard_logit(self) -> Any:
        """Return the hazard logits of the rows."""
        return self._read(lambda batch, _: batch.hazard_logit())

    @property
    def mask(self) -> Any:
        """The positions that are not padding; None where they decide nothing."""
        return None if self._batches[0].mask is None else self._read(lambda batch, _: batch.mask)

    def _read(self, read: Callable[[Any, Ints], Any], index: Any = None) -> Any:
        rows, parts = self._parts(self.rows if index is None else self.rows[np.asarray(index)])
        found = [read(batch, places) for batch, places in parts]
        return namespace(found[0]).concatenate(found)[np.argsort(rows)]

    def _parts(self, rows: Ints) -> tuple[Ints, list[tuple[Any, Ints]]]:
        """Return rows in the order of their batches, and each of these batches with the places of its rows."""
        rows = rows[np.lexsort((self._place[rows], self._number[rows]))]
        numbers, starts = np.unique(self._number[rows], return_index=True)
        places = np.split(self._place[rows], starts[1:])
        return rows, [
            (self._batches[number], own) for number, own in zip(numbers, places, strict=True)
        ]
