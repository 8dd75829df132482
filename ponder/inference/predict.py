"""`predict` and `record`: a whole data set through a model, each row to its exit, or through every step.

A batch costs its rows times its longest row, so rows of one length stand together. `predict` takes a chunk of many
batches one step further and deals the remaining rows anew to full batches, so that the last rows of a batch do not run
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ponder._utils.modes import evaluating
from ponder._utils.trees import map_tensors
from ponder.errors import ArgumentError
from ponder.inference.cohorts import Exited, Stepper, join, regroup
from ponder.inference.examples import (
    Collate,
    Example,
    ExampleReader,
    can_regroup,
    examples_in,
    fitting,
    join_labels,
)
from ponder.model.loop import run
from ponder.model.padding import Along, join_rows, last_position, with_lengths
from ponder.policies.base import ExitPolicy
from ponder.trajectory import Trajectory

__all__ = ["Predictions", "predict", "record"]

_BATCHES_AT_ONCE = 16  # whose hidden states are in memory together


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers to a data set, in its order, on the CPU.

    Args:
        outputs: The head's outputs at each row's exit, `(rows, …)`; where they have a length, the task's blank stands
            beyond the end of a row.
        exit_step: The step at which each row exited, `(rows,)` long, 1-based.

    Example:
        >>> predictions = ponder.predict(model, inputs, policy=policies.FixedStep(2))
        >>> len(predictions), predictions.outputs.shape, predictions.exit_step[:3]
        (300, torch.Size([300, 3]), tensor([2, 2, 2]))
    """

    outputs: Tensor
    exit_step: Tensor

    def __len__(self) -> int:
        return len(self.exit_step)


def predict(
    model: Any,
    dataset: Iterable[Any] | Sequence[Any],
    *,
    policy: ExitPolicy | None = None,
    batch_size: int = 32,
    max_tokens: int | None = None,
    num_steps: int | None = None,
    policy_context: Mapping[str, Tensor] | None = None,
    row_ids: Sequence[int] | Tensor | None = None,
    collate: Collate | None = None,
    progress: Callable[[int], object] | None = None,
) -> Predictions:
    """Run every example of a data set to its exit, in evaluation mode and without gradients.

    An example is the inputs of one row, or a pair (inputs, context) whose second item is a dict; tensors, arrays or
    lists of numbers without a batch dimension. Labels in the context are not looked at. Rows of different lengths share
    a batch where the model declares its `ponder.Padding`; otherwise rows of one shape do.

    Args:
        model: A `ponder.PonderWrapper`.
        dataset: A sequence or iterable of examples, which is read to its end first, or a `torch.utils.data.DataLoader`.
        policy: Decides instead of the model's own policy.
        batch_size: Rows of a batch at most.
        max_tokens: Positions of a batch at most, padding included; a row that is longer runs alone.
        num_steps: Number of steps, as for a call of the model.
        policy_context: Values that policies read of each row, by name: tensors with a row for each example.
        row_ids: Identity of each row, for seeded sampling; its position where None.
        collate: Makes the inputs, or the pair (inputs, context), of a batch from a list of examples of any kind.
        progress: Called with the number of rows that were answered since its last call.

    Example:
        >>> model = PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3))
        >>> ponder.predict(model, torch.randn(100, 8)).outputs.shape
        torch.Size([100, 3])
    """
    policy = model.checked(policy, num_steps)
    reader = ExampleReader(model.padding, collate)
    rows = _read(reader, dataset)
    ids = range(len(rows)) if row_ids is None else [int(row) for row in row_ids]
    exited: list[Exited] = []
    chunks = _chunks(rows, batch_size * _BATCHES_AT_ONCE)
    if "group" in policy.needs and policy_context:  # rows that are decided together stay together
        chunks, batch_size, max_tokens = _whole_groups(policy_context["group"], batch_size), len(rows), None
    with evaluating(model):
        for chunk in chunks:
            batches = [
                _Batch(places, [rows[n] for n in places], [ids[n] for n in places], _rows_of(policy_context, places))
                for places in _batches(chunk, rows, batch_size, max_tokens)
            ]
            if len(batches) == 1 or not can_regroup(model):
                found: Iterator[Exited] = map(partial(_alone, model, policy, num_steps, reader), batches)
            else:
                stepper = Stepper(model, policy, num_steps or model.num_steps)
                found = _advanced(stepper, reader, batches, batch_size, max_tokens)
            for gone in found:
                exited.append(gone)
                if progress is not None:
                    progress(len(gone.rows))
    return _in_order(exited, model)


class _Batch(NamedTuple):
    places: list[int]
    examples: list[Example]
    row_ids: list[int]
    policy_context: dict[str, Tensor] | None


def _alone(model: Any, policy: ExitPolicy, num_steps: int | None, reader: ExampleReader, batch: _Batch) -> Exited:
    """Run a batch that is not regrouped, as a call of the model does."""
    (inputs, context), given = _placed((reader.batch(batch.examples), batch.policy_context), model)
    context.pop("labels", None)
    asks = {"use_hazard": "hazard" in policy.needs, "use_features": "features" in policy.needs}
    source, rows = model.start(inputs, context, torch.tensor(batch.row_ids), given, num_steps, **asks)
    exits = run(source, policy, rows)
    lengths = tuple([example.length for example in batch.examples])
    return Exited(tuple(batch.places), tuple(exits.exit_step.tolist()), lengths, exits.outputs.cpu())


def _advanced(
    stepper: Stepper, reader: ExampleReader, batches: Sequence[_Batch], batch_size: int, max_tokens: int | None
) -> Iterator[Exited]:
    """Take batches step by step to their exits, and deal what remains anew to full batches."""
    cohorts = [stepper.begin(reader, examples, places, ids, given) for places, examples, ids, given in batches]
    while cohorts:
        remaining = []
        for parts in regroup(cohorts, batch_size, max_tokens):
            exited, after = stepper.step(join(parts, stepper.padding))
            if after is not None:
                remaining.append(after)
            if exited is not None:
                yield replace(exited, outputs=exited.outputs.cpu())
        cohorts = remaining


def record(
    model: Any,
    dataset: Iterable[Any] | Sequence[Any],
    *,
    labels: Tensor | Sequence[Any] | None = None,
    batch_size: int = 32,
    max_tokens: int | None = None,
    num_steps: int | None = None,
    policy_context: Mapping[str, Tensor] | None = None,
    row_ids: Sequence[int] | Tensor | None = None,
    keep_features: bool = False,
    collate: Collate | None = None,
    progress: Callable[[int], object] | None = None,
) -> Trajectory:
    """Run every example of a data set through all steps, in evaluation mode, and record them.

    The trajectory is on the CPU, in the order of the data set. `replay` gives what `ponder.predict` gives with the same
    policy and row ids, seeded sampling included.

    Args:
        model: A `ponder.PonderWrapper`.
        dataset: The examples, as for `ponder.predict`.
        labels: Labels with a row for each example; those that the examples carry as ``"labels"`` where None.
        batch_size: Rows of a batch at most.
        max_tokens: Positions of a batch at most, padding included.
        num_steps: Number of steps, as for a call of the model.
        policy_context: Kept with the trajectory for policies that read it.
        row_ids: Identity of each row, its position where None. Rows of two records, one to calibrate and one to test,
            are known to be different ones by ids of their own: `ponder.split` gives disjoint sides.
        keep_features: Record features too, for policies that read them.
        collate: Makes the inputs, or the pair (inputs, context), of a batch from a list of examples of any kind.
        progress: Called with the number of rows of each batch.

    Example:
        >>> model.record(inputs, labels=labels).outputs.shape
        torch.Size([300, 4, 3])
    """
    reader = ExampleReader(model.padding, collate)
    rows = _read(reader, dataset)
    if not rows:
        raise ArgumentError("dataset", expected="at least one example", got="none", remedy="Record some data.")
    ids = range(len(rows)) if row_ids is None else [int(row) for row in row_ids]
    if labels is not None:
        rows = [replace(row, labels=torch.as_tensor(label)[None]) for row, label in zip(rows, labels, strict=True)]
    per_token = model.task is not None and model.task.per_token
    parts: list[Trajectory] = []
    order: list[int] = []
    with evaluating(model):
        for places in _batches(_sorted(rows), rows, batch_size, max_tokens):
            examples = [rows[place] for place in places]
            inputs, context = _placed(reader.batch(examples), model)
            own = join_labels([row.labels for row in examples], per_token, max(row.length for row in examples))
            own = context.pop("labels", None) if own is None else own
            found = model.unroll(
                inputs,
                labels=_placed(own, model),
                row_ids=torch.tensor([ids[place] for place in places]),
                policy_context=_rows_of(policy_context, places),
                num_steps=num_steps,
                keep_features=keep_features,
                **context,
            ).map(Tensor.cpu)
            if found.meaning.per_position and found.mask is not None:
                ends = last_position(found.mask)
                found = replace(found, outputs=_blank_ends(found.outputs, ends, found.meaning.blank, dim=2))
            parts.append(found)
            order += places
            if progress is not None:
                progress(len(places))
    joined = replace(Trajectory.cat(parts), weights=model.weights_digest())
    return joined.map(lambda tensor: tensor[torch.argsort(torch.tensor(order))])


def _placed(tree: Any, model: Any) -> Any:
    """Bring the tensors of a batch to the device of the model."""
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), tree)


def _read(reader: ExampleReader, dataset: Any) -> list[Example]:
    """Read a data set; an example that cannot be read is named by its position."""
    rows: list[Example] = []
    for example in examples_in(dataset):
        try:
            rows.append(reader.read(example))
        except Exception as error:
            error.add_note(f"in dataset[{len(rows)}]")
            raise
    return rows


def _sorted(rows: Sequence[Example]) -> list[int]:
    """Return the places of rows: those that may share a batch together, the longest of them first."""
    groups: dict[Any, int] = {}
    keys = [(groups.setdefault(row.signature, len(groups)), -row.length, place) for place, row in enumerate(rows)]
    return [place for _, _, place in sorted(keys)]


def _chunks(rows: Sequence[Example], size: int) -> Iterator[list[int]]:
    """Cut the sorted places of rows into chunks of one signature."""
    chunk: list[int] = []
    for place in _sorted(rows):
        if chunk and (len(chunk) == size or rows[place].signature != rows[chunk[0]].signature):
            yield chunk
            chunk = []
        chunk.append(place)
    if chunk:
        yield chunk


def _whole_groups(groups: Tensor, size: int) -> Iterator[list[int]]:
    """Cut the places of rows into chunks of whole groups, of `size` rows or one group at least."""
    chunk: list[int] = []
    for group in groups.unique():
        chunk += (groups == group).nonzero().flatten().tolist()
        if len(chunk) >= size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _batches(
    places: Sequence[int], rows: Sequence[Example], max_batch: int, max_tokens: int | None
) -> Iterator[list[int]]:
    """Cut sorted places into batches of one signature, within the limits."""
    start = 0
    while start < len(places):
        end = start + fitting(
            [rows[place].length for place in places[start : start + max_batch]], max_batch, max_tokens
        )
        first = rows[places[start]].signature
        batch = [place for place in places[start:end] if rows[place].signature == first]
        yield batch
        start += len(batch)


def _rows_of(tree: Mapping[str, Tensor] | None, places: Sequence[int]) -> dict[str, Tensor] | None:
    return None if tree is None else {name: value[list(places)] for name, value in tree.items()}


def _in_order(exited: Sequence[Exited], model: Any) -> Predictions:
    if not exited:
        return Predictions(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    order = torch.argsort(torch.tensor([row for gone in exited for row in gone.rows]))
    steps = torch.tensor([step for gone in exited for step in gone.steps])
    outputs, task = [gone.outputs for gone in exited], model.task
    if model.padding is not None and task is not None and task.per_position:
        outputs = [_blank_ends(gone.outputs, torch.tensor(gone.lengths), task.blank) for gone in exited]
    if len({part.shape[1:] for part in outputs}) > 1:
        longest = max(part.shape[1] for part in outputs)
        along = with_lengths(Along(fill=0.0 if task is None else task.blank))
        joined = join_rows(outputs, [len(part) for part in outputs], lengths=along, length=longest, path="outputs")
    else:
        joined = torch.cat(outputs)
    return Predictions(joined[order], steps[order])


def _blank_ends(outputs: Tensor, lengths: Tensor, blank: float, dim: int = 1) -> Tensor:
    """Outputs with positions in dimension `dim`, and `blank` beyond the length of each row."""
    beyond = torch.arange(outputs.shape[dim], device=outputs.device) >= lengths.unsqueeze(1)
    shape = (len(lengths), *[1] * (dim - 1), outputs.shape[dim], *[1] * (outputs.dim() - dim - 1))
    return outputs.masked_fill(beyond.view(shape), blank)
