"""`predict` and `record`: a data set through a model, each row to its exit or through all steps.

The cost of a batch is its number of rows times its longest row, so rows of similar length share a
batch. `predict` runs a chunk of many batches step by step, and deals the remaining rows to full
batches again, so that the last rows of a batch do not run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor

from ponder._utils.modes import evaluating
from ponder.errors import ArgumentError
from ponder.inference.batches import start_batches
from ponder.inference.examples import (
    DataSet,
    Example,
    ExampleReader,
    Labels,
    SteppedModule,
    UserExample,
    examples_in,
    join_labels,
)
from ponder.model.padding import Along, join_rows, last_position
from ponder.policies.base import ExitPolicy
from ponder.running.chunk import cut
from ponder.running.loop import Answers, run
from ponder.trajectory import Trajectory

__all__ = ["predict", "record"]

_BATCHES_AT_ONCE = 16
"""Batches whose hidden states are in memory together."""


def predict(
    model: SteppedModule,
    dataset: DataSet,
    *,
    policy: ExitPolicy | None = None,
    batch_size: int = 32,
    max_tokens: int | None = None,
    num_steps: int | None = None,
    policy_context: Mapping[str, Tensor] | None = None,
    row_ids: Sequence[int] | Tensor | None = None,
    progress: Callable[[int], object] | None = None,
    **context: Tensor,
) -> Answers:
    """Run every example of a data set to its exit, in evaluation mode and without gradients.

    An example is a batch of `ponder.fit` without its first dimension: the inputs, ``(inputs,
    labels)``, ``(inputs, mask, labels)``, ``(inputs, {"mask": mask})`` or a dict by names (see
    `ponder.model.batch`); tensors, arrays or lists of numbers. Labels are not read. Rows of
    different lengths share a batch if the model declares its `ponder.Padding`; if not, only rows of
    one shape do.

    Args:
        model: A `ponder.PonderWrapper`.
        dataset: A sequence or iterable of examples, which is read to its end first, or a
            `torch.utils.data.DataLoader`, as for training, whose batches are taken apart.
        policy: An exit policy instead of the model's.
        batch_size: Rows of a batch at most.
        max_tokens: Positions of a batch at most, with padding; a longer row runs alone.
        num_steps: Number of steps, as for a call of the model.
        policy_context: Values that policies read of each row, by name: tensors with a row for each
            example.
        row_ids: Identity of each row, for seeded sampling. By default its position.
        progress: Called with the number of rows that were answered since its last call.
        context: Context of all rows by name, as for a call, if the data set is a tensor.

    Returns:
        The answers in the order of the data set, on the CPU. Outputs at positions are padded with
        the task's blank.

    Example:
        >>> answers = ponder.predict(model, inputs, policy=policies.FixedStep(2))
        >>> len(answers), answers.outputs.shape, answers.exit_step[:3]
        (300, torch.Size([300, 3]), tensor([2, 2, 2]))
    """
    policy = model.checked(policy, num_steps)
    data = _DataSet.read(model, examples_in(dataset, context), row_ids, policy_context)
    order: list[int] = []
    parts: list[Answers] = []
    with evaluating(model):
        for places in _chunks(data, policy, batch_size, max_tokens):
            source, batch = start_batches(
                data.reader,
                data.examples(places),
                policy.needs,
                data.ids[places],
                data.context(places),
                num_steps=num_steps,
                max_batch=batch_size,
                max_tokens=max_tokens,
            )
            parts.append(run(source, policy, batch))
            order += places
            if progress is not None:
                progress(len(places))
    return _in_order(parts, order, data, model)


def record(
    model: SteppedModule,
    dataset: DataSet,
    *,
    labels: Tensor | Sequence[Labels] | None = None,
    batch_size: int = 32,
    max_tokens: int | None = None,
    num_steps: int | None = None,
    policy_context: Mapping[str, Tensor] | None = None,
    row_ids: Sequence[int] | Tensor | None = None,
    keep_features: bool = False,
    progress: Callable[[int], object] | None = None,
    **context: Tensor,
) -> Trajectory:
    """Run every example of a data set through all steps, in evaluation mode, and record them.

    The trajectory is on the CPU, in the order of the data set. `replay` returns the same exits as
    `ponder.predict` with the same policy and row ids, also for seeded sampling.

    Args:
        model: A `ponder.PonderWrapper`.
        dataset: The examples, as for `ponder.predict`.
        labels: Labels with a row for each example. By default those of the examples, if they have
            any.
        batch_size: Rows of a batch at most.
        max_tokens: Positions of a batch at most, with padding.
        num_steps: Number of steps, as for a call of the model.
        policy_context: Values that policies read, kept with the trajectory.
        row_ids: Identity of each row. By default its position. Ids show that the rows of two
            records, one to calibrate and one to test, are different (`ponder.split`).
        keep_features: Whether to record features, for policies that read them.
        progress: Called with the number of rows of each batch.
        context: Context of all rows by name, as for a call, if the data set is a tensor.

    Example:
        >>> model.record(inputs, labels=labels).outputs.shape
        torch.Size([300, 4, 3])
    """
    data = _DataSet.read(model, examples_in(dataset, context), row_ids, policy_context)
    if not data.rows:
        raise ArgumentError(
            "dataset", expected="at least one example", got="none", remedy="Record some data."
        )
    if labels is not None:
        for row, label in zip(data.rows, labels, strict=True):
            row.labels = torch.as_tensor(label)[None]
    batches: list[list[int]] = []
    for kind in data.kinds():
        batches += data.batches(kind, batch_size, max_tokens)
    options = _RecordOptions(num_steps=num_steps, keep_features=keep_features)
    parts: list[Trajectory] = []
    with evaluating(model):
        for places in batches:
            parts.append(_record_batch(model, data, places, options))
            if progress is not None:
                progress(len(places))
    joined = replace(Trajectory.cat(parts), weights=model.weights_digest())
    order = torch.argsort(torch.tensor([place for places in batches for place in places]))
    return joined.map(lambda tensor: tensor[order])


class _RecordOptions(TypedDict):
    """What a recording asks of each call of `unroll`."""

    num_steps: int | None
    keep_features: bool


def _record_batch(
    model: SteppedModule, data: _DataSet, places: list[int], options: _RecordOptions
) -> Trajectory:
    """Record one batch, on the CPU; outputs beyond the end of a row are blank."""
    examples = data.examples(places)
    inputs, context = data.reader.batch(examples)
    per_token = model.task is not None and model.task.per_token
    longest = max(row.length for row in examples)
    labels = join_labels([row.labels for row in examples], per_token, longest)
    trajectory = model.unroll(
        inputs,
        labels=data.reader.placed(labels),
        row_ids=data.ids[places],
        policy_context=data.context(places),
        **options,
        **context,
    ).map(Tensor.cpu)
    task = trajectory.meaning
    if not task.per_position or trajectory.mask is None:
        return trajectory
    ends = last_position(trajectory.mask)
    return replace(trajectory, outputs=_blank_ends(trajectory.outputs, ends, task.blank, dim=2))


@dataclass(frozen=True, eq=False)
class _DataSet:
    """A data set that was read, with the identity and the policy's context of each row."""

    reader: ExampleReader
    rows: list[Example]
    ids: Tensor
    policy_context: Mapping[str, Tensor] | None

    @classmethod
    def read(
        cls,
        model: SteppedModule,
        examples: Iterable[UserExample],
        row_ids: Sequence[int] | Tensor | None,
        context: Mapping[str, Tensor] | None,
    ) -> _DataSet:
        """Read examples; errors name the position of the one that cannot be read."""
        reader = ExampleReader(model)
        rows: list[Example] = []
        for example in examples:
            try:
                rows.append(reader.read(example))
            except Exception as error:
                error.add_note(f"in dataset[{len(rows)}]")
                raise
        reader.refuse_masks(rows)
        if row_ids is None:
            ids = torch.arange(len(rows))
        else:
            ids = torch.tensor([int(row) for row in row_ids])
        return cls(reader, rows, ids, context)

    def kinds(self) -> list[list[int]]:
        """Return the places of the rows that may share a batch, the longest of each kind first."""
        kinds: dict[Hashable, list[int]] = {}
        by_length = sorted(enumerate(self.rows), key=lambda pair: -pair[1].length)
        for place, row in by_length:
            kinds.setdefault(row.signature, []).append(place)
        return list(kinds.values())

    def batches(
        self, places: Sequence[int], batch_size: int, max_tokens: int | None
    ) -> list[list[int]]:
        """Cut the places of a kind into batches."""
        lengths = [self.rows[place].length for place in places]
        return [list(places[batch]) for batch in cut(lengths, batch_size, max_tokens)]

    def examples(self, places: list[int]) -> list[Example]:
        """Return some rows."""
        return [self.rows[place] for place in places]

    def context(self, places: list[int]) -> dict[str, Tensor] | None:
        """Return the policy's context of some rows."""
        if self.policy_context is None:
            return None
        values = self.policy_context.items()
        return {name: self.reader.placed(value[places]) for name, value in values}


def _chunks(
    data: _DataSet, policy: ExitPolicy, batch_size: int, max_tokens: int | None
) -> list[list[int]]:
    """Return the places of rows that a loop runs together: several batches if it may regroup."""
    chunks: list[list[int]] = []
    size = batch_size
    if data.reader.regroups:
        size *= _BATCHES_AT_ONCE
    if "group" in policy.needs and data.policy_context:
        # Rows that are decided together stay together.
        groups = data.policy_context["group"]
        for group in groups.unique():
            if not chunks or len(chunks[-1]) >= size:
                chunks.append([])
            chunks[-1] += (groups == group).nonzero().flatten().tolist()
        return chunks
    for kind in data.kinds():
        if data.reader.regroups:
            for start in range(0, len(kind), size):
                chunks.append(kind[start : start + size])
        else:
            chunks += data.batches(kind, batch_size, max_tokens)
    return chunks


def _in_order(
    parts: Sequence[Answers], rows: Sequence[int], data: _DataSet, model: SteppedModule
) -> Answers:
    """Join the answers of several chunks in the order of the data set.

    Outputs beyond the end of a row are blank.

    Args:
        parts: The answers.
        rows: The place of each row in the data set.
        data: The data set.
        model: The model.
    """
    if not parts:
        return Answers(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    outputs = [part.outputs.cpu() for part in parts]
    exit_step = torch.cat([part.exit_step for part in parts]).cpu()
    task = model.task
    blank = 0.0
    if task is not None:
        blank = task.blank
    if task is not None and task.per_position and model.padding is not None:
        lengths = torch.tensor([data.rows[row].length for row in rows])
        lengths_of_parts = lengths.split([len(part) for part in outputs])
        pairs = zip(outputs, lengths_of_parts, strict=True)
        outputs = [_blank_ends(part, ends, blank) for part, ends in pairs]
    order = torch.argsort(torch.tensor(rows))
    return Answers(_at_one_length(outputs, blank)[order], exit_step[order])


def _at_one_length(outputs: Sequence[Tensor], blank: float) -> Tensor:
    """Return the outputs of several batches as one tensor; shorter ones end in `blank`."""
    if len({part.shape[1:] for part in outputs}) == 1:
        return torch.cat(list(outputs))
    along = Along(fill=blank)
    longest = max(part.shape[1] for part in outputs)
    joined: Tensor = join_rows(outputs, lambda *_: along, longest, path="outputs")
    return joined


def _blank_ends(outputs: Tensor, lengths: Tensor, blank: float, dim: int = 1) -> Tensor:
    """Return outputs with `blank` beyond the length of each row; positions are in `dim`."""
    beyond = torch.arange(outputs.shape[dim], device=outputs.device) >= lengths.unsqueeze(1)
    shape = (len(lengths), *[1] * (dim - 1), outputs.shape[dim], *[1] * (outputs.dim() - dim - 1))
    return outputs.masked_fill(beyond.view(shape), blank)
