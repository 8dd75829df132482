"""`record`: a whole data set through all steps of a model, as one trajectory in the order of the data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ponder._utils.trees import Tree
from ponder._utils.validation import check_int
from ponder.engine.model import check_model
from ponder.errors import ArgumentError
from ponder.inference.batching import BatchLimits
from ponder.inference.examples import Example, join_labels
from ponder.inference.passes import (
    Collate,
    DatasetPass,
    blank_padding,
    by_position,
    check_row_count,
    no_label,
    row_context,
    rows_at,
)
from ponder.parts.padding import Padding, named_in
from ponder.parts.tasks.base import IGNORED_LABEL
from ponder.trajectory import Trajectory

__all__ = ["record"]


class _Unrolls(Protocol):
    """A model whose full depth can be recorded, as `ponder.PonderWrapper`."""

    def unroll(self, inputs: Tree, **arguments: Any) -> Trajectory:
        """Run and record every step of a batch."""


def record(
    model: Any,
    dataset: Iterable[Any] | Sequence[Any],
    *,
    labels: Tensor | Sequence[Any] | None = None,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    policy_context: Mapping[str, Tensor] | None = None,
    num_steps: int | None = None,
    keep_features: bool = False,
    progress: bool = False,
    collate: Collate | None = None,
    sort_by_length: bool = True,
    dtype: torch.dtype | None = None,
    owner: nn.Module | None = None,
    first_row: int = 0,
) -> Trajectory:
    """Run every example of a data set through all steps, in evaluation mode, and record them.

    The trajectory is on the CPU, in the order of the data set, and a row's id is its position there (plus `first_row`):
    so `replay` gives what `ponder.predict` gives with the same policy, seeded sampling included. Outputs that have a
    length are padded with zeros, and labels with −100.

    Args:
        model: A `ponder.PonderWrapper`.
        dataset: The examples, as for `ponder.predict`.
        labels: Labels of the examples: a tensor with a row for each, or a sequence of them. Where None, those that the
            examples carry in their context as ``"labels"``, if any.
        batch_size: Rows of a batch at most; 32 where neither limit is given.
        max_tokens: Positions of a batch at most, padding included.
        policy_context: Kept with the trajectory for policies that read it: tensors with a row for each example.
        num_steps: How many steps, as for a call of the model.
        keep_features: Record features too, for policies that read them.
        progress: Show a progress bar.
        collate: Makes the inputs, or the pair (inputs, context), of a batch from a list of examples of any kind.
        sort_by_length: Put rows of similar length together.
        dtype: Run under `torch.autocast` in this precision.
        owner: The module that owns what the model only calls, if that is another.
        first_row: The id of the first row; the others follow. Data sets that are different rows, one to calibrate and
            one to test, say, get ids of their own by it, as they do where one `record` of all is split afterwards.

    Raises:
        ArgumentError: An empty data set, an example that cannot be read or run, or labels that do not fit: with an
            answer a token, more or fewer than the row has tokens.

    Example:
        >>> record(model, inputs, labels=labels).outputs.shape
        torch.Size([300, 4, 3])
    """
    check_model(model)
    check_int("first_row", first_row, 0)
    num_steps = model.depth(num_steps)
    sizes = check_row_count("policy_context", policy_context)
    if labels is not None:
        labels = by_position("labels", labels)
    going = DatasetPass(
        owner=model if owner is None else owner,
        padding=model.padding,
        limits=BatchLimits.checked("batch_size", batch_size, max_tokens, model.padding),
        label="record",
        progress=progress,
        collate=collate,
        sort_by_length=sort_by_length,
        dtype=dtype,
        sizes=sizes if labels is None else {**sizes, "labels": len(labels)},
    )
    per_token = model.spec.task.per_token

    def call(inputs: Tree, context: dict[str, Any], examples: Sequence[Example]) -> Trajectory:
        of_batch = context.pop("labels", None)
        if of_batch is None or labels is not None:
            own = _labels_of(examples) if labels is None else rows_at(labels, examples)
            length = None if model.padding is None else max([example.length for example in examples]) or None
            if per_token and model.padding is not None:
                _check_aligned(own, examples, model.padding)
            of_batch = join_labels(own, per_token, length)
        given = row_context(policy_context, examples, None)
        row_ids = torch.tensor([first_row + example.position for example in examples])
        return _unrolled(model, inputs, context, of_batch, row_ids, given, num_steps, keep_features)

    parts, order = going.run(dataset, call)
    if not parts:
        raise ArgumentError("dataset", expected="at least one example", got="none", remedy="Record some data.")
    unlabelled = sum([len(part) for part in parts if part.labels is None])
    if 0 < unlabelled < len(order):
        raise ArgumentError(
            "labels",
            expected="labels for every example, or for none",
            got=f"none for {unlabelled} of {len(order)} rows or more",
            remedy="Label all examples, or pass labels= to the call.",
        )
    joined = replace(Trajectory.cat(parts), weights=model.weights_digest())
    return joined.map(lambda tensor: tensor[order])


def _labels_of(examples: Sequence[Example]) -> list[Tensor | None]:
    """The labels that the examples carry; names of classes, say, are refused, with which nothing could be compared."""
    for example in examples:
        if example.unread is not None:
            raise no_label(example.unread)
    return [example.labels for example in examples]


def _check_aligned(labels: Sequence[Tensor | None], examples: Sequence[Example], padding: Padding) -> None:
    """Refuse labels that are not those of a row's positions: they would be filled up, or cut off, to its length."""
    for label, example in zip(labels, examples, strict=True):
        width = padding.width(named_in(example.inputs, example.context))
        if label is None or width is None or label.dim() < 2:
            continue
        if label.shape[1] < example.length or bool((label[:, width:] != IGNORED_LABEL).any()):
            raise ArgumentError(
                "labels",
                expected=f"one for each of the row's {example.length} positions",
                got=str(label.shape[1]),
                remedy=f"Label tokens, not words: {IGNORED_LABEL} where a token has no label, and where there is none.",
            )


def _unrolled(
    model: _Unrolls,
    inputs: Tree,
    context: Mapping[str, Any],
    labels: Tensor | None,
    row_ids: Tensor,
    policy_context: Mapping[str, Tensor] | None,
    num_steps: int,
    keep_features: bool,
) -> Trajectory:
    """The trajectory of a batch, on the CPU, with the task's `blank` beyond the end of every row."""
    found = model.unroll(
        inputs,
        labels=labels,
        row_ids=row_ids,
        policy_context=policy_context,
        num_steps=num_steps,
        keep_features=keep_features,
        **context,
    )
    if found.meaning.per_position and model.padding is not None:  # type: ignore[attr-defined]
        found = replace(found, outputs=blank_padding(found.outputs, found.mask, dim=2, blank=found.meaning.blank))
    return found.map(Tensor.cpu)
