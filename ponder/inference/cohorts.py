"""Rows of a model between two steps: the stem makes batches of them, and parts of several batches join to one.

`ponder.predict` deals the rows that remain anew after each step; a stream lets rows at different depths share a batch.
Both use what stands here.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ponder._utils.batches import Chunk, cut
from ponder._utils.trees import Tree, first_tensor
from ponder.inference.examples import Example, ExampleReader
from ponder.model.loop import ModelSource
from ponder.model.padding import Along, join_context, join_rows
from ponder.policies.base import PolicyBatch

__all__ = ["begin", "join", "source_of"]


def source_of(
    reader: ExampleReader,
    examples: Sequence[Example],
    needs: Container[str],
    row_ids: Tensor | None = None,
    policy_context: Mapping[str, Tensor] | None = None,
    *,
    num_steps: int | None = None,
    max_batch: int,
    max_tokens: int | None = None,
) -> tuple[Any, PolicyBatch]:
    """Run the stem for examples, and return what a loop runs: one batch, or several whose rows are dealt anew."""
    lengths, start = [example.length for example in examples], reader.model.start
    order = np.argsort([-length for length in lengths], kind="stable").tolist()
    parts = list(cut([lengths[place] for place in order], max_batch, max_tokens))
    if len(parts) == 1 or not reader.regroups:
        source, rows = start(*reader.batch(examples), row_ids, policy_context, num_steps, needs)
        return source, rows
    batches = list[tuple[list[int], ModelSource]]()
    for part in parts:
        batch, own = begin(reader, [examples[place] for place in order[part]], needs)
        batches.append((order[part], batch))
        for place, length in zip(order[part], own, strict=True):
            lengths[place] = length
    ids = torch.arange(len(examples)) if row_ids is None else row_ids
    rows = PolicyBatch(reader.placed(ids), num_steps or reader.model.num_steps, reader.model.task)
    return Chunk(batches, lengths, join, max_batch, max_tokens, policy_context), rows


def begin(reader: ExampleReader, examples: Sequence[Example], needs: Container[str]) -> tuple[ModelSource, list[int]]:
    """Run the stem for a batch of examples, and return it with the lengths that its rows have there.

    Where a spare row is needed (see `Padding.optional`), it is the last, and has no length.
    """
    inputs, context = reader.batch(examples, spare=reader.spares)
    source, _ = reader.model.start(inputs, context, needs=needs)
    lengths, padding = [example.length for example in examples], reader.padding
    width = None if padding is None else padding.width(source.hidden)
    if width != max([2 if reader.spares else 0, *lengths]):  # the stem makes positions of its own
        lengths = [width or 0] * len(lengths)
    return source, lengths


def join(parts: Sequence[tuple[ModelSource, Any]], longest: int) -> ModelSource:
    """Return rows of several batches, each with their rising places there, as one batch of that length.

    What is taken of a whole batch is not copied, and no batch is changed.
    """
    sources, sizes = [source for source, _ in parts], [len(places) for _, places in parts]
    first, padding = sources[0], sources[0].parts.padding
    keep = [
        None if len(places) == len(first_tensor(source.hidden)) else torch.as_tensor(places, device=source.device)
        for source, places in parts
    ]

    def joined(trees: list[Tree], path: str, lengths: Any = None) -> Any:
        return join_rows(trees, sizes, keep, lengths=lengths, length=longest, path=path)

    return ModelSource(
        first.parts,
        joined([s.hidden for s in sources], "hidden state", None if padding is None else padding.of_hidden),
        join_context([s.context for s in sources], sizes, padding, longest, keep),
        first.use_hazard,
        past=joined([s.halting() if s.past is not None and s.step else s.past for s in sources], "past features"),
        mask=joined([s.mask for s in sources], "mask", Along(fill=False)),
        policy_context=joined([s.policy_context for s in sources], "policy_context"),
    )
