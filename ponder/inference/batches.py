"""Rows of a model between two steps: the stem makes batches, and parts of batches are joined.

`ponder.predict` deals the rows that remain anew after each step; a stream lets rows at different
depths share a batch. Both use what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ponder._utils.trees import Tree, first_tensor, take_rows
from ponder.inference.examples import Example, ExampleReader
from ponder.model.padding import Along, Lengths, join_rows, width_of
from ponder.model.source import ModelSource
from ponder.policies.base import PolicyBatch
from ponder.running.chunk import Chunk, cut
from ponder.running.source import Source, Start

__all__ = ["begin", "join", "start_batches"]


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
        regroups: Whether batches may be merged as rows exit. Otherwise rows keep the batches of the
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
    ids = torch.arange(len(examples)) if row_ids is None else row_ids
    rows = PolicyBatch(
        reader.placed(ids), num_steps or reader.model.num_steps, reader.model.spec.task
    )
    most = max_batch if regroups else None
    return Start(Chunk(batches, lengths, join, most, max_tokens, policy_context), rows)


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
    padding = reader.padding
    width = 0 if padding is None else width_of(source.hidden)
    if width != max([2 if reader.spares else 0, *lengths]):  # the stem makes positions of its own
        lengths = [width] * len(lengths)
    return source, lengths


def join(parts: Sequence[tuple[ModelSource, Any]], longest: int) -> ModelSource:
    """Return rows of several batches, each with their rising places there, as one batch.

    What is taken of a whole batch is not copied, and no batch is changed.
    """
    first = parts[0][0]
    padding = parts[0][0].parts.padding
    chosen = list[tuple[ModelSource, Tensor | None]]()
    for source, places in parts:
        whole = len(places) == len(first_tensor(source.hidden))
        chosen.append((source, None if whole else torch.as_tensor(places, device=source.device)))

    def joined(
        read: Callable[[ModelSource], Tree], path: str, lengths: Lengths | None = None
    ) -> Any:
        trees = [
            read(source) if rows is None else take_rows(read(source), rows)
            for source, rows in chosen
        ]
        return join_rows(trees, lengths, longest, path=path)

    return ModelSource(
        first.parts,
        joined(
            lambda source: source.hidden,
            "hidden state",
            None if padding is None else padding.of_hidden,
        ),
        joined(
            lambda source: dict(source.context),
            "context",
            None if padding is None else padding.of_context,
        ),
        first.use_hazard,
        past=joined(lambda source: source.past, "past"),
        mask=joined(lambda source: source.mask, "mask", lambda *_: Along(fill=False)),
        policy_context=joined(lambda source: dict(source.policy_context), "policy_context"),
    )
