"""`predict`: a whole data set through a model, in batches of similar length, each row to its exit.

A batch costs its rows times its longest row, so rows of one length stand together; inside a batch, rows leave at their
exits, and the batch gets narrower as its longest rows do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.modes import evaluating
from ponder._utils.progress import progress_bar
from ponder._utils.trees import map_tensors
from ponder._utils.validation import check_type
from ponder.engine.loop import Exits
from ponder.engine.model import EarlyExitModel
from ponder.inference.batching import Collate, Reader, Row, batches, by_length, make_limits, read, refuse, rows_of
from ponder.parts.joining import join_rows, with_lengths
from ponder.parts.padding import Along, Padding
from ponder.policies import ExitPolicy

__all__ = ["Predictions", "predict"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers to a data set, in its order, on the CPU.

    Args:
        outputs: The head's outputs at each row's exit, `(rows, …)`; where they have a length, padded with zeros.
        exit_step: The step at which each row left, `(rows,)` long, 1-based.
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
    num_steps: int | None = None,
    progress: bool = False,
    collate: Collate | None = None,
    sort_by_length: bool = True,
    dtype: torch.dtype | None = None,
    owner: nn.Module | None = None,
) -> Predictions:
    """Run every example of a data set to its exit, in evaluation mode and without gradients.

    An example is the inputs of one row, or a pair (inputs, context) whose second item is a dict, as for
    `ponder.StreamEngine`; without a batch dimension. Lists of numbers are read as tensors, and `labels` in the context
    are left out. Rows of different lengths share a batch where the model declares its `ponder.Padding`; otherwise rows
    of one shape do. The position of a row in the data set is its row id, for seeded sampling.

    Args:
        model: The model; modules have their modes again afterwards.
        dataset: Any sequence or iterable of examples. It is read to its end first where `sort_by_length`.
        batch_size: Rows of a batch at most; 32 where neither limit is given.
        max_tokens: Positions of a batch at most, padding included (a row that is longer runs alone); needs a model
            with padding.
        policy: Decides instead of the model's own policy.
        num_steps: How many steps, as for a call of the model.
        progress: Show a progress bar.
        collate: Makes the inputs, or the pair (inputs, context), of a batch from a list of examples of any kind; where
            lengths are asked for, each example is collated alone first.
        sort_by_length: Put rows of similar length together, the longest first. Where False, batches are cut from the
            data set as it comes.
        dtype: Run under `torch.autocast` in this precision, for example `torch.bfloat16`.
        owner: The module that owns what the model only calls, if that is another: its modes are switched.

    Raises:
        ArgumentError: A limit below 1, a policy that cannot serve the model, or an example that cannot be read or run:
            the message names its position.

    Example:
        >>> model = PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3))
        >>> predict(model, torch.randn(100, 8)).outputs.shape
        torch.Size([100, 3])
    """
    check_type("model", model, EarlyExitModel)
    num_steps = model.depth(num_steps)
    policy = model.checked(policy, num_steps)
    limits = make_limits(batch_size, max_tokens, model.padding)
    owner = model if owner is None else owner
    device = next((parameter.device for parameter in owner.parameters()), None)
    reader = Reader(model.padding, collate, sort_by_length or max_tokens is not None)
    total = len(dataset) if isinstance(dataset, Sized) else None
    rows = read(rows_of(dataset), reader)
    if sort_by_length:
        rows = iter(by_length(rows))
    kind = "cpu" if device is None else device.type
    precision = nullcontext() if dtype is None else torch.autocast(kind, dtype=dtype)
    done: list[tuple[list[int], Exits]] = []
    with (
        evaluating(owner),
        torch.inference_mode(),
        precision,
        progress_bar("predict", total, shown=progress) as advance,
    ):
        for batch in batches(rows, limits):
            found = _run(model, policy, num_steps, batch, reader, device)
            done.append(([row.position for row in batch], found))
            advance(len(batch))
    return _in_order(done, model.padding)


def _run(
    model: EarlyExitModel,
    policy: ExitPolicy,
    num_steps: int,
    rows: Sequence[Row],
    reader: Reader,
    device: torch.device | None,
) -> Exits:
    """The exits of a batch, on the CPU; an error is told with the row that raises it alone, too."""

    def call(rows: Sequence[Row]) -> Exits:
        inputs, context = map_tensors(lambda tensor: _placed(tensor, device), reader.batch(rows))
        row_ids = torch.tensor([row.position for row in rows])
        found = model.exits(inputs, context, policy, row_ids=row_ids, num_steps=num_steps)
        return Exits(found.outputs.cpu(), found.exit_step.cpu())

    try:
        return call(rows)
    except Exception as error:
        for row in rows if len(rows) > 1 else ():
            try:
                call([row])
            except Exception as own:
                refuse(row.position, own)
        if len(rows) == 1:
            refuse(rows[0].position, error)
        error.add_note(
            f"in a batch of the rows {[row.position for row in rows]} of the data set, none of which fails alone"
        )
        raise


def _placed(tensor: Tensor, device: torch.device | None) -> Tensor:
    """`tensor` on the device, and made in inference mode: compiled steps are compiled again for one that is not."""
    tensor = tensor if device is None else tensor.to(device, non_blocking=True)
    return tensor if tensor.is_inference() else tensor.clone()


def _in_order(done: Sequence[tuple[list[int], Exits]], padding: Padding | None) -> Predictions:
    """What the batches gave, in the order of the data set: ordinary tensors, out of inference mode."""
    if not done:
        return Predictions(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    order = torch.argsort(torch.tensor([position for positions, _ in done for position in positions]))
    outputs = [exits.outputs for _, exits in done]
    if padding is not None and not padding.pooled:
        length = max(part.shape[1] for part in outputs)
        sizes = [part.shape[0] for part in outputs]
        joined = join_rows(outputs, sizes, lengths=with_lengths(Along()), length=length, path="outputs")
    else:
        joined = torch.cat(outputs)
    return Predictions(joined[order], torch.cat([exits.exit_step for _, exits in done])[order])
