"""From an encoder and an example to the parts of a model, before heads are added."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ponder._utils.modes import evaluating
from ponder._utils.trees import Tree, tensors, unwrap
from ponder.errors import ArgumentError
from ponder.model import readouts
from ponder.model.capture import capture
from ponder.model.readouts import Readout, ReadoutCall
from ponder.model.source import call_stem
from ponder.model.steps import Step, Steps

__all__ = ["read_encoder"]


def read_encoder(
    encoder: nn.Module | Step | Sequence[Step] | Steps,
    example: Any,
    num_steps: int | None,
    per_position: bool,
    stem: Callable[..., Tree] | None,
    readout: Readout | None,
    layers: str | None,
) -> tuple[dict[str, Any], str | None, Tensor]:
    """Read an encoder, and run it on an example for one step, in evaluation mode and without a gradient.

    Arguments as for `PonderWrapper.from_recipe`; `per_position` says whether there is an answer at
    each position.

    Returns:
        The arguments of `PonderWrapper` that are the encoder; the name of its inputs, where the
        example has names; and the features of the example at the first step, `(batch, width)`, or
        `(batch, length, width)` with an answer at each position.
    """
    states = padding = None
    if (
        isinstance(encoder, nn.Module)
        and not isinstance(encoder, nn.ModuleList | Steps)
        and num_steps is None
    ):
        captured = capture(encoder, example, layers=layers)
        steps, stem, states, padding = (
            captured.steps,
            captured.stem,
            captured.readout,
            captured.padding,
        )
        if captured.classifier is not None:
            expected = "an encoder, whose features new heads read"
            got = f"a model that ends in a head of its own, {captured.classifier!r}"
            remedy = f"Take it off: module.{captured.classifier} = nn.Identity() (in timm, num_classes=0). If it is no "
            remedy += "head, build the model of the parts that ponder.capture gives."
            raise ArgumentError("module_or_steps", expected=expected, got=got, remedy=remedy)
    else:
        steps = Steps.of(encoder, num_steps)
    chosen = (
        states
        if states and readout is None
        else ReadoutCall(readout or readouts.identity, states=states)
    )
    name, inputs, given = None, example, dict[str, Any]()
    if isinstance(example, Mapping):  # the first argument with a tensor is the inputs
        given = {name: value for name, value in example.items() if value is not None}
        name = next((name for name, value in given.items() if tensors(value)), next(iter(given)))
        inputs = given.pop(name)
    with evaluating(
        nn.ModuleList([steps, chosen, *([stem] if isinstance(stem, nn.Module) else [])])
    ):
        hidden, context, _ = call_stem(stem, inputs, given)
        call = unwrap(context)
        hidden = steps(1, hidden, **call)
        features = chosen(hidden, **call)
        if features.dim() == 3 and readout is None and not per_position:
            chosen = ReadoutCall(readouts.mean, states=states)
            features = chosen(hidden, **call)
    if features.dim() != (3 if per_position else 2) or not features.is_floating_point():
        expected = f"features {'(batch, length, width)' if per_position else '(batch, width)'} in floating point"
        got = f"{features.dtype} {tuple(features.shape)} at step 1 of the example"
        remedy = "Pass readout=ponder.readouts.mean, say, or a function hidden -> features."
        raise ArgumentError("readout", expected=expected, got=got, remedy=remedy)
    return {"steps": steps, "stem": stem, "readout": chosen, "padding": padding}, name, features
