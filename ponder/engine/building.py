"""From an encoder and an example to the parts of a model, before `PonderWrapper.from_recipe` adds heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ponder._utils.modes import evaluating
from ponder._utils.trees import Tree, tensors
from ponder._utils.validation import check_choice
from ponder.engine.model import EarlyExitModel
from ponder.errors import ArgumentError, ArgumentTypeError, PonderError
from ponder.parts import readouts
from ponder.parts.capturing import capture
from ponder.parts.padding import Padding
from ponder.parts.readouts import Pooled, Readout
from ponder.parts.steps import Step, Steps
from ponder.policies import FixedStep

__all__ = ["EncoderParts", "ReadoutName", "main_input_of", "read_encoder"]

ReadoutName = Literal["mean", "first_token", "last"]
_POOLS: dict[str, Readout] = {
    "mean": readouts.mean,
    "first_token": readouts.first_token,
    "last": readouts.last,
}


@dataclass(frozen=True)
class EncoderParts:
    """An encoder as a model takes it.

    Args:
        steps: The steps.
        stem: Inputs to hidden state; None is the identity.
        readout: Hidden state to the features that the head reads; None is the identity.
        halting_readout: Hidden state to what the Lambda head reads, `(batch, width)`; None where that is the features.
        padding: Where lengths lie, if that is known.
        features: What a dry run gave at the first step, `(batch, width)`, or `(batch, length, width)` with an answer a
            token.
    """

    steps: Steps
    stem: Callable[..., Tree] | None
    readout: Readout | None
    halting_readout: Readout | None
    padding: Padding | None
    features: Tensor


def read_encoder(
    encoder: nn.Module | Step | Sequence[Step] | Steps,
    example: Any,
    num_steps: int | None,
    *,
    per_position: bool,
    stem: Callable[..., Tree] | None = None,
    readout: Readout | ReadoutName | None = None,
    layers: str | None = None,
) -> EncoderParts:
    """Read an encoder, and run it on an example for one step, in evaluation mode and without a gradient.

    Args:
        encoder: A module with a list of layers, one step, several, or `ponder.Steps`.
        example: What it is called with, see `as_call`.
        num_steps: N, for one shared step; None for everything else.
        per_position: Whether there is an answer at each position.
        stem: Inputs to h_0, for steps; a module with a list of layers has its own.
        readout: Hidden state to features. A name pools the positions. Where None, features with positions are averaged
            over those that are no padding, unless there is an answer at each.
        layers: The name of the list of layers, where the largest is not meant.

    Raises:
        ArgumentError: The encoder cannot be read or run, or its features are no vectors.
    """
    if isinstance(readout, str):
        check_choice("readout", readout, _POOLS)
    whole = isinstance(encoder, nn.Module) and not isinstance(encoder, (nn.ModuleList, Steps)) and num_steps is None
    own: Readout | None = None
    padding: Padding | None = None
    if whole:
        if stem is not None:
            raise ArgumentError(
                "stem",
                expected="None for a module with a list of layers, which has a stem of its own",
                got=repr(stem),
                remedy="Leave it out, or pass a list of steps.",
            )
        assert isinstance(encoder, nn.Module)
        captured = _captured(encoder, example, layers)
        steps, stem, own, padding = captured.steps, captured.stem, captured.readout, captured.padding
    else:
        steps = Steps.of(encoder, num_steps)
    if readout is None or isinstance(readout, str):
        pool = None if readout is None else _POOLS[readout]
        chosen = own if pool is None else Pooled(own, pool, padding)
    else:
        pool, chosen = None, readout
    inputs, context = as_call(example)
    features = _dry_run(steps, stem, readouts.identity if chosen is None else chosen, inputs, context)
    halting: Readout | None = None
    if per_position:
        chosen = chosen or readouts.identity
        halting = Pooled(chosen, readouts.mean, padding)
    elif features.dim() == 3 and readout is None:
        chosen = Pooled(own, readouts.mean, padding)
        features = _dry_run(steps, stem, chosen, inputs, context)
    if features.dim() != (3 if per_position else 2):
        raise ArgumentError(
            "readout",
            expected=f"features {'(batch, length, width)' if per_position else '(batch, width)'}",
            got=f"shape {tuple(features.shape)} at step 1 of the example",
            remedy="Pass readout=ponder.readouts.mean, say, or a function hidden -> features.",
        )
    if not features.is_floating_point():
        raise ArgumentError(
            "readout",
            expected="features in floating point, from which heads can learn",
            got=f"{features.dtype} at step 1 of the example",
            remedy="Pass an example of the dtype of the weights, and a readout that keeps it.",
        )
    if padding is not None and padding.pooled == per_position:
        padding = dataclasses.replace(padding, pooled=not per_position)
    return EncoderParts(steps, stem, chosen, halting, padding, features)


def as_call(example: Any) -> tuple[Tree, dict[str, Any]]:
    """An example as the inputs and the context of a call.

    It is the inputs, a pair (inputs, context) whose second item is a dict, or a dict of arguments: the first of them
    that holds a tensor is then the inputs.
    """
    if isinstance(example, Mapping):
        given = {name: value for name, value in example.items() if value is not None}
        if not given:
            raise ArgumentTypeError(
                "example", expected="a small batch of inputs", got="an empty dict", remedy="Pass tensors."
            )
        return given.pop(main_input_of(given)), given
    if isinstance(example, tuple | list) and len(example) == 2 and isinstance(example[1], Mapping):
        return example[0], dict(example[1])
    return example, {}


def main_input_of(example: Mapping[str, Any]) -> str:
    """The name of the inputs among the arguments of an example: of the first that holds a tensor, if one does."""
    return next((name for name, value in example.items() if tensors(value)), next(iter(example)))


def _captured(module: nn.Module, example: Any, layers: str | None) -> Any:
    pair = isinstance(example, tuple) and len(example) == 2 and isinstance(example[1], Mapping)
    if pair:
        raise ArgumentTypeError(
            "example",
            expected="what the module is called with: a tensor, a tuple of arguments, or a dict of them by name",
            got="a pair of inputs and a dict",
            remedy="Pass one dict, {'inputs': …, 'mask': …}, with the names of the module's own arguments.",
        )
    try:
        return capture(module, example, layers=layers)
    except ArgumentError as error:
        if error.argument == "example":
            raise
        raise ArgumentError(
            "module_or_steps",
            expected="a module with a list of layers, a list of steps, or one shared step with num_steps",
            got=f"a {type(module).__name__} that cannot be read as the first ({error})",
            remedy="Pass num_steps=… if it is one step that is applied again and again, or the list of its layers.",
        ) from error


def _dry_run(
    steps: Steps, stem: Callable[..., Tree] | None, readout: Readout, inputs: Tree, context: Mapping[str, Any]
) -> Tensor:
    """The features of the example at the first step; nothing of the model changes.

    Raises:
        ArgumentError: The example is nothing that the parts can be called with.
    """
    probe = EarlyExitModel(steps, head=nn.Identity(), stem=stem, readout=readout)
    try:
        with evaluating(probe), torch.no_grad():
            return probe.exits(inputs, context, FixedStep(1)).outputs
    except (ArgumentError, ArgumentTypeError) as error:
        if error.argument != "inputs" and error.argument not in context:
            raise
        raise _not_an_example(error.got) from error
    except PonderError:  # some are errors of these kinds too
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise _not_an_example(f"{type(error).__name__}: {error}") from error


def _not_an_example(got: str) -> ArgumentError:
    return ArgumentError(
        "example",
        expected="a small batch that stem, first step and readout can be called with, in the width and dtype they take",
        got=got,
        remedy="Call them one after the other on it, to see what they want.",
    )
