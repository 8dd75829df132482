"""`predict`: a whole data set through a model, in batches of similar length, each row to its exit.

A batch costs its rows times its longest row, so rows of one length stand together; inside a batch, rows leave at their
exits, and the batch gets narrower as its longest rows do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.trees import Tree
from ponder._utils.validation import check_int
from ponder.engine.loop import Exits
from ponder.engine.model import EarlyExitModel, check_model
from ponder.errors import ArgumentError
from ponder.inference.batching import BatchLimits
from ponder.inference.examples import Example
from ponder.inference.passes import Collate, DatasetPass, blank_padding, check_row_count, row_context
from ponder.parts.joining import join_rows, with_lengths
from ponder.parts.padding import Along, named_in
from ponder.parts.tasks import task_named
from ponder.policies import ExitPolicy

__all__ = ["Predictions", "joined", "predict"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers to a data set, in its order, on the CPU.

    Args:
        outputs: The head's outputs at each row's exit, `(rows, …)`; where they have a length, zeros stand beyond the
            end of a row. Of a task that names no positions, and one number at each, `(rows, length)`, only batches of
            several lengths tell that: in one alone, what the head says of padding stays.
        exit_step: The step at which each row left, `(rows,)` long, 1-based.

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
    model: EarlyExitModel,
    dataset: Iterable[Any] | Sequence[Any],
    *,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    policy: ExitPolicy | None = None,
    policy_context: Mapping[str, Tensor] | None = None,
    num_steps: int | None = None,
    progress: bool = False,
    collate: Collate | None = None,
    sort_by_length: bool = True,
    dtype: torch.dtype | None = None,
    owner: nn.Module | None = None,
    first_row: int = 0,
) -> Predictions:
    """Run every example of a data set to its exit, in evaluation mode and without gradients.

    An example is the inputs of one row, or a pair (inputs, context) whose second item is a dict, as for
    `ponder.StreamEngine`; without a batch dimension. Lists of numbers are read as tensors, and `labels` in the context
    are left out. Rows of different lengths share a batch where the model declares its `ponder.Padding`; otherwise rows
    of one shape do. The position of a row in the data set (plus `first_row`) is its row id, for seeded sampling.

    Several threads may call this on one model, in training mode too: it is in evaluation mode until the last of them
    is done, and then in the mode that it had.

    Args:
        model: The model; modules have their modes again afterwards.
        dataset: Any sequence or iterable of examples, or a `torch.utils.data.DataLoader`, whose batches are taken apart
            into rows. It is read to its end first where `sort_by_length`.
        batch_size: Rows of a batch at most; 32 where neither limit is given.
        max_tokens: Positions of a batch at most, padding included (a row that is longer runs alone); needs a model
            with padding.
        policy: Decides instead of the model's own policy.
        policy_context: What policies may read of each row, by name: tensors with a row for each example.
        num_steps: How many steps, as for a call of the model.
        progress: Show a progress bar.
        collate: Makes the inputs, or the pair (inputs, context), of a batch from a list of examples of any kind; where
            lengths are asked for, each example is collated alone first.
        sort_by_length: Put rows of similar length together, the longest first. Where False, batches are cut from the
            data set as it comes.
        dtype: Run under `torch.autocast` in this precision, for example `torch.bfloat16`.
        owner: The module that owns what the model only calls, if that is another: its modes are switched.
        first_row: The row id of the first example; the others follow.

    Raises:
        ArgumentError: A limit below 1, a policy that cannot serve the model, or an example that cannot be read or run:
            the message names its position.

    Example:
        >>> model = PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3))
        >>> predict(model, torch.randn(100, 8)).outputs.shape
        torch.Size([100, 3])
    """
    check_model(model)
    check_int("first_row", first_row, 0)
    num_steps = model.depth(num_steps)
    passed, policy, padding = policy is not None, model.checked(policy, num_steps), model.padding
    if passed:
        model.look_at_certificate(policy)
    if "context" in policy.needs and policy_context is None:
        raise ArgumentError(
            "policy_context",
            expected=f"what {policy!r} reads of each row",
            got="None",
            remedy="Pass policy_context={'budget': budgets}, say, a tensor with a row for each example.",
        )
    going = DatasetPass(
        owner=model if owner is None else owner,
        padding=padding,
        limits=BatchLimits.checked("batch_size", batch_size, max_tokens, padding),
        label="predict",
        progress=progress,
        collate=collate,
        sort_by_length=sort_by_length,
        dtype=dtype,
        sizes=check_row_count("policy_context", policy_context),
    )
    task = model.task or task_named(None)
    unpooled = padding is not None and not padding.pooled  # it may answer at each position, whatever its task
    lengths = list[Tensor | None]()

    def call(inputs: Tree, context: dict[str, Any], examples: Sequence[Example]) -> Exits:
        context.pop("labels", None)
        row_ids = torch.tensor([first_row + example.position for example in examples])
        given = row_context(policy_context, examples, None)
        found = model.exits(inputs, context, policy, row_ids=row_ids, policy_context=given, num_steps=num_steps)
        outputs = found.outputs
        if task.per_position and padding is not None:
            outputs = blank_padding(outputs, model.positions_of(inputs, context, outputs), blank=task.blank)
        elif unpooled and padding is not None:
            lengths.append(named_in(inputs, context).get(padding.mask))
        return Exits(outputs.cpu(), found.exit_step.cpu())

    found, order = going.run(dataset, call)
    if not found:
        return Predictions(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    parts = [exits.outputs for exits in found]
    at_positions = unpooled and not task.per_position and _are_positions(parts, lengths)
    if at_positions and padding is not None:
        masks = [padding.positions({padding.mask: mask}) for mask in lengths]
        parts = [blank_padding(part, mask) for part, mask in zip(parts, masks, strict=True)]
    outputs = joined(parts, task.per_position or at_positions, task.blank)
    return Predictions(outputs[order], torch.cat([exits.exit_step for exits in found])[order])


def _are_positions(outputs: Sequence[Tensor], masks: Sequence[Tensor | None]) -> bool:
    """Whether a model whose task does not say so answers at each position: its outputs are as long as every batch.

    Of one number a position, `(batch, length)`, batches of several lengths show that they are no classes.
    """
    pairs = zip(outputs, masks, strict=True)
    if not all(part.dim() > 1 and (mask is None or part.shape[1] == mask.shape[1]) for part, mask in pairs):
        return False
    return outputs[0].dim() > 2 or len({part.shape[1] for part in outputs}) > 1


def joined(outputs: Sequence[Tensor], has_length: bool, blank: float) -> Tensor:
    """The outputs of all batches: ordinary tensors, out of inference mode."""
    found = {part.shape[1] if part.dim() > 1 else 0 for part in outputs}
    length = max(found)
    if len(found) == 1:
        return torch.cat(list(outputs))
    if not has_length:
        raise ArgumentError(
            "outputs",
            expected="outputs of one shape in all batches",
            got=sorted({tuple(part.shape[1:]) for part in outputs}),
            remedy="Where a model answers at each position, name its task: task='token_classification'.",
        )
    sizes = [len(part) for part in outputs]
    lengths = with_lengths(Along(fill=blank))
    joined: Tensor = join_rows(outputs, sizes, lengths=lengths, length=length, path="outputs")
    return joined
