"""Several batches of rows of similar length that a loop runs as one, merged as rows exit.

Padding is computed, too. Therefore `cut` puts rows of similar length into one batch, the longest
rows first. Small batches waste time, so before each step a `Chunk` merges neighbours:

    a batch from which no row has exited, and which no neighbour joins, stays as it is
    neighbours that fit into one batch, by rows and by padding, become one
    a batch that has lost rows and stays alone is cut to its remaining rows and their longest length
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ponder._utils.arrays import namespace
from ponder.running.source import Array, Ints, Source

__all__ = ["Chunk", "Join", "cut"]

_PADDED = 1.15
"""Positions that are computed ÷ those that are not padding, at most."""
Join = Callable[[list[tuple[Any, Ints]], int], Source]
"""A function from parts of batches, each a source with the rising places of its rows, and the
length of the longest row, to one source of these rows."""


def cut(lengths: Sequence[int], max_batch: int, max_tokens: int | None = None) -> Iterator[slice]:
    """Cut rows, the longest first, into batches of limited numbers of rows and positions.

    Padding is at most 15% of the other positions; a row that is too long is alone.
    """
    start = real = 0
    for place, length in enumerate(lengths):
        rows = place - start + 1
        real += length
        if rows > 1 and not _fits(rows, lengths[start], real, max_batch, max_tokens):
            yield slice(start, place)
            start = place
            real = length
    if lengths:
        yield slice(start, len(lengths))


def _fits(rows: int, longest: int, real: int, max_batch: int, max_tokens: int | None) -> bool:
    """Return whether rows with so many real positions may be one batch."""
    positions = rows * longest
    return rows <= max_batch and positions <= min(_PADDED * real, max_tokens or math.inf)


@dataclass(eq=False)
class _Part:
    """Rows of one batch that are still running.

    Args:
        source: The batch.
        rows: Numbers of the rows in the chunk, in the order of the batch.
        places: Their places in the batch; None if all of its rows run.
    """

    source: Source
    rows: Ints
    places: Ints | None = None

    def places_in_batch(self) -> Ints:
        """Return the places of the rows in the batch."""
        if self.places is None:
            return np.arange(len(self.rows))
        return self.places

    def drop(self, running: Ints) -> None:
        """Forget the rows that have exited; `running` marks the others, by their numbers."""
        stays = running[self.rows]
        if not stays.all():
            self.places = self.places_in_batch()[stays]
            self.rows = self.rows[stays]


class Chunk:
    """Rows in several batches, which a loop runs as if they were one: a `ponder.running.Source`.

    Args:
        batches: Sources before their first step, each with the numbers of its rows; the longest
            rows first.
        lengths: The length of each row, by its number.
        join: Makes one batch of parts of several.
        max_batch: Rows of a batch at most; None keeps every batch as it is.
        max_tokens: Positions of a batch at most.
        context: Values that policies read of each row, by name, in the order of the numbers.

    Attributes:
        rows: The numbers of the running rows, rising; all readings are in their order.
    """

    def __init__(
        self,
        batches: Sequence[tuple[Sequence[int], Source]],
        lengths: Sequence[int],
        join: Join,
        max_batch: int | None,
        max_tokens: int | None = None,
        context: Mapping[str, Array] | None = None,
    ) -> None:
        self.rows = np.arange(len(lengths))
        self.policy_context: Mapping[str, Array] = context or {}
        self._lengths = np.asarray(lengths)
        self._join = join
        self._max_batch = max_batch
        self._max_tokens = max_tokens
        self._parts = [_Part(source, np.asarray(rows)) for rows, source in batches]

    def advance(self, step: int) -> None:
        """Merge batches that have become small, and take all rows through a step."""
        self._parts = [self._merged(parts) for parts in self._neighbours()]
        for part in self._parts:
            part.source.advance(step)

    def keep(self, index: Ints) -> None:
        """Keep some of the running rows."""
        self.rows = self.rows[index]
        self.policy_context = {name: value[index] for name, value in self.policy_context.items()}
        running = np.zeros(len(self._lengths), dtype=bool)
        running[self.rows] = True
        for part in self._parts:
            part.drop(running)
        self._parts = [part for part in self._parts if len(part.rows)]

    def output(self) -> Array:
        """Return the outputs of the rows."""
        return self._in_order([part.source.output() for part in self._parts])

    def output_of(self, index: Ints) -> Array:
        """Return the outputs of some of the rows, without computing others."""
        wanted = np.zeros(len(self._lengths), dtype=bool)
        wanted[self.rows[index]] = True
        rows: list[Ints] = []
        outputs: list[Array] = []
        for part in self._parts:
            places = np.flatnonzero(wanted[part.rows])
            if len(places):
                rows.append(part.rows[places])
                outputs.append(part.source.output_of(places))
        return _concatenated(outputs)[np.argsort(np.concatenate(rows))]

    def features(self) -> Array:
        """Return the features of the rows."""
        return self._in_order([part.source.features() for part in self._parts])

    def hazard_logit(self) -> Array:
        """Return the hazard logits of the rows."""
        return self._in_order([part.source.hazard_logit() for part in self._parts])

    @property
    def mask(self) -> Array | None:
        """The positions that are not padding; None if nothing has positions."""
        masks = [part.source.mask for part in self._parts]
        if masks[0] is None:
            return None
        return self._in_order(masks)

    def _neighbours(self) -> Iterator[list[_Part]]:
        """Yield the batches that become one, next to each other in the order of lengths."""
        if self._max_batch is None:
            yield from ([part] for part in self._parts)
            return
        together: list[_Part] = []
        rows = longest = real = 0
        for part in self._parts:
            lengths = self._lengths[part.rows]
            size = len(part.rows)
            positions = int(lengths.sum())
            longest = max(longest, int(lengths.max()))
            limits = self._max_batch, self._max_tokens
            if together and not _fits(rows + size, longest, real + positions, *limits):
                yield together
                together = []
                rows = 0
                real = 0
                longest = int(lengths.max())
            together.append(part)
            rows += size
            real += positions
        if together:
            yield together

    def _merged(self, parts: list[_Part]) -> _Part:
        """Return batches as one; one from which no row has exited as it is."""
        if len(parts) == 1 and parts[0].places is None:
            return parts[0]
        taken = [(part.source, part.places_in_batch()) for part in parts]
        rows = np.concatenate([part.rows for part in parts])
        return _Part(self._join(taken, int(self._lengths[rows].max())), rows)

    def _in_order(self, values: list[Array]) -> Array:
        """Join what was read of every batch, in the order of the rows."""
        numbers = np.concatenate([part.rows for part in self._parts])
        return _concatenated(values)[np.argsort(numbers)]


def _concatenated(values: list[Array]) -> Array:
    if len(values) == 1:
        return values[0]
    return namespace(values[0]).concatenate(values)
