"""Rows of a model between two steps: the stem makes batches, and parts of batches are joined.

`ponder.predict` deals the rows that remain anew after each step; a stream lets rows at different
depths share a batch. Both use what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ponder._utils.trees import Tree, first_tensor, take_rows
from ponder.inference.examples import Example, ExampleReader
from ponder.model.padding import Along, Lengths, join_rows, width_of
from ponder.model.source import ModelSource
from ponder.policies.base import PolicyBatch
from ponder.running.chunk import Chunk, cut
from ponder.running.source import Ints, Source, Start

__all__ = ["begin", "join", "start_batches"]

Places: TypeAlias = Sequence[int] | Ints
"""Rising places of rows in a batch."""


def start_batches(
    reader: ExampleReader,
    examples: Sequence[Example],
    needs: Container[str],
    row_ids: Tensor | None = None,
    policy_context: Mapping[str, Tensor] | None = None,
    *,
    num_steps: int | None = None,
    max_batch: int,
    max_tokens: int | None = None,
    regroups: bool = True,
) -> Start[Source]:
    """Run the stem for examples, and return what a loop runs: one batch, or a `Chunk` of several.

    Args:
        reader: The reader that made the examples.
        examples: The examples, of one kind.
        needs: What the policy reads.
        row_ids: Identity of each row; its position if None.
        policy_context: What policies read of each row, by name.
        num_steps: Number of steps; the model's own if None.
        max_batch: Rows of a batch at most.
        max_tokens: Positions of a batch at most.
        regroups: Whether batches may be merged as rows exit. If not, rows keep the batches of the
            start, as a ranker wants it, whose candidates are all of one kind.
    """
    lengths = [example.length for example in examples]
    order = np.argsort(np.negative(lengths), kind="stable").tolist()
    parts = list(cut([lengths[place] for place in order], max_batch, max_tokens))
    one_batch = len(parts) == 1 and regroups
    if one_batch or not reader.regroups:
        inputs, context = reader.batch(examples)
        context |= {"row_ids": row_ids, "policy_context": policy_context}
        return reader.model.start(inputs, needs, num_steps, **context)
    batches = list[tuple[list[int], ModelSource]]()
    for part in parts:
        batch, own = begin(reader, [examples[place] for place in order[part]], needs)
        batches.append((order[part], batch))
        for place, length in zip(order[part], own, strict=True):
            lengths[place] = length
    if row_ids is None:
        row_ids = torch.arange(len(examples))
    model = reader.model
    rows = PolicyBatch(reader.placed(row_ids), num_steps or model.num_steps, model.spec.task)
    limits = (max_batch if regroups else None, max_tokens)
    return Start(Chunk(batches, lengths, join, *limits, context=policy_context), rows)


def begin(
    reader: ExampleReader, examples: Sequence[Example], needs: Container[str]
) -> tuple[ModelSource, list[int]]:
    """Run the stem for a batch of examples; return it with the lengths of its rows there.

    A spare row, beside which a mask is kept (see `Padding.optional`), goes through the stem alone.
    """
    inputs, context = reader.batch(examples, spare=reader.spares)
    source, _ = reader.model.start(inputs, needs, **context)
    if reader.spares:
        source.keep(np.arange(len(examples)))
    lengths = [example.length for example in examples]
    width = 0
    if reader.padding is not None:
        width = width_of(source.hidden)
    longest = max(lengths)
    if reader.spares:
        longest = max(longest, 2)
    if width != longest:  # the stem makes positions of its own
        lengths = [width] * len(lengths)
    return source, lengths


def join(parts: Sequence[tuple[ModelSource, Places]], longest: int) -> ModelSource:
    """Return rows of several batches, each with their rising places there, as one batch.

    What is taken of a whole batch is not copied, and no batch is changed.
    """
    first, _ = parts[0]
    chosen = [_RowsOf(source, places) for source, places in parts]

    def joined(
        read: Callable[[ModelSource], Tree], path: str, lengths: Lengths | None = None
    ) -> Tree:
        return join_rows([rows.taken(read) for rows in chosen], lengths, longest, path=path)

    lengths_of_hidden: Lengths | None = None
    lengths_of_context: Lengths | None = None
    padding = first.parts.padding
    if padding is not None:
        lengths_of_hidden = padding.of_hidden
        lengths_of_context = padding.of_context
    return ModelSource(
        first.parts,
        joined(lambda source: source.hidden, "hidden state", lengths_of_hidden),
        joined(lambda source: dict(source.context), "context", lengths_of_context),
        first.use_hazard,
        past=joined(lambda source: source.past, "past"),
        mask=joined(lambda source: source.mask, "mask", lambda *_: Along(fill=False)),
        policy_context=joined(lambda source: dict(source.policy_context), "policy_context"),
    )


class _RowsOf:
    """Some rows of a batch, or all."""

    def __init__(self, source: ModelSource, places: Places) -> None:
        self.source = source
        self.index: Tensor | None = None  # all, which need no copy
        if len(places) < len(first_tensor(source.hidden)):
            self.index = torch.as_tensor(places, device=source.device)

    def taken(self, read: Callable[[ModelSource], Tree]) -> Tree:
        """Return the rows of what is read of the batch."""
        tree = read(self.source)
        if self.index is None:
            return tree
        return take_rows(tree, self.index)
