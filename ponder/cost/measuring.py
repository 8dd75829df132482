"""Measuring a `Cost`: the parts of a wrapped model are run once, on real inputs, and their FLOPs counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ponder._utils.modes import evaluating
from ponder._utils.trees import Tree, check_rows, take_rows, tensors
from ponder.cost.breakdown import Cost
from ponder.cost.flops import counted
from ponder.engine.model import EarlyExitModel, check_model
from ponder.engine.sources import ModelSource, call_stem
from ponder.errors import ArgumentError
from ponder.parts.joining import join_rows
from ponder.parts.padding import Padding, check_masks, named_in

__all__ = ["measure", "measure_each"]

_T = TypeVar("_T")


@torch.no_grad()  # what a module makes on its first call, and keeps, must serve training too
def measure(model: EarlyExitModel, inputs: Tree, **context: Any) -> Cost:
    """FLOPs per example of every part of `model` on a batch, in evaluation mode; the model is left as it was.

    Padding is computed, and so it is counted: pass one example, or examples of one length, or see `measure_each`.

    Args:
        model: A wrapped model.
        inputs: Inputs of a call of the model, `(batch, …)`, with one row or more.
        context: Context of the call.

    Example:
        >>> model = ponder.PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3))
        >>> cost = measure(model, torch.randn(5, 8))
        >>> cost.steps, cost.head
        ((128.0, 128.0, 128.0, 128.0), 48.0)
    """
    check_model(model)
    check_masks(context)
    with evaluating(model):
        (hidden, context_of_steps, size), stem = _run(lambda: call_stem(model.stem, inputs, context))
        if not size:
            raise ArgumentError("inputs", expected="one row or more", got="none", remedy="Pass an example.")
        source, first = _run(
            lambda: ModelSource(model, hidden, context_of_steps, use_hazard=model.lambda_head is not None)
        )
        steps, readouts, heads, hazards = [], [], [], [0]
        for step in range(1, model.num_steps + 1):
            steps.append(_run(lambda step=step: source.advance(step))[1])  # type: ignore[misc]
            readouts.append(_run(source.read_out)[1])
            heads.append(_run(source.output)[1])
            if model.lambda_head is not None:
                hazards.append(_run(source.hazard_logit)[1])

    def each(flops: list[int]) -> tuple[float, ...]:
        return tuple(count / size for count in flops)

    return Cost(
        stem / size,
        each(steps),
        each(readouts),
        each(heads),
        hazards[-1] / size,
        first / size,
        hazard_reads_features=model.halting_readout is None,
    )


def measure_each(
    model: EarlyExitModel, inputs: Tree, *, padding: Padding | None = None, **context: Any
) -> tuple[Cost, ...]:
    """The cost of every example at its true length, as if it came alone and without padding.

    Each length in the batch is measured once, on real calls.

    Args:
        model: A wrapped model.
        inputs: Inputs of a call of the model, padded on the right.
        padding: Where the lengths lie; the model's own where None.
        context: Context of the call, with the mask that `padding` names.

    Returns:
        One cost a row; rows of one length share it.

    Example:
        >>> layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)]
        >>> first_token, padding = ponder.readouts.first_token, ponder.Padding("src_key_padding_mask", real=False)
        >>> model = ponder.PonderWrapper(layers, readout=first_token, head=nn.Linear(8, 3), padding=padding)
        >>> mask = torch.tensor([[False] * 6, [False] * 3 + [True] * 3])  # rows of six positions and of three
        >>> long, short = measure_each(model, torch.randn(2, 6, 8), src_key_padding_mask=mask)
        >>> round(long.plain / short.plain, 1)
        2.2
    """
    check_model(model)
    padding = model.padding if padding is None else padding
    if padding is None:
        raise ArgumentError(
            "padding",
            expected="a ponder.Padding, since the model declares none",
            got=None,
            remedy="Pass padding=Padding(), say, or measure each example alone with ponder.cost.measure.",
        )
    check_rows("context", context, check_rows("inputs", inputs))
    lengths = padding.lengths(named_in(inputs, context))
    if lengths is None:
        raise ArgumentError(
            padding.mask, expected="a mask (batch, length)", got=None, remedy="Pass the mask that the padding names."
        )
    of_length: dict[int, Cost] = {}
    for row, length in enumerate(lengths.tolist()):
        if length not in of_length:
            alone, of_alone = _alone(model, inputs, context, padding, row, length)
            of_length[length] = measure(model, alone, **of_alone)
    return tuple(of_length[length] for length in lengths.tolist())


def _alone(
    model: EarlyExitModel, inputs: Tree, context: dict[str, Any], padding: Padding, row: int, length: int
) -> tuple[Tree, dict[str, Any]]:
    """Cut one row, and its context, out of a batch, without its padding."""
    device = next(tensor.device for _, tensor in tensors(inputs))
    inputs, context = take_rows((inputs, context), torch.tensor([row], device=device))
    if model.stem is None:
        return padding.trim(inputs, context, length)
    inputs = join_rows([inputs], [1], lengths=padding.lengths_of_inputs(inputs), length=length, path="inputs")
    return inputs, padding.trim((), context, length)[1]


def _run(call: Callable[[], _T]) -> tuple[_T, int]:
    """Return what a call gives, and the FLOPs that it took."""
    with counted() as flops:
        result = call()
    return result, flops.total
