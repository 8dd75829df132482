"""From an encoder and an example to the parts of a model, before heads are added."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ponder._utils.modes import evaluating
from ponder._utils.trees import Tree, tensors, unwrap
from ponder.errors import ArgumentError
from ponder.model import readouts
from ponder.model.capture import Captured, capture
from ponder.model.padding import Padding
from ponder.model.readouts import Readout, ReadoutCall
from ponder.model.source import call_stem
from ponder.model.steps import Step, Steps

__all__ = ["Encoder", "read_encoder"]


@dataclass(frozen=True)
class Encoder:
    """The parts of an encoder, and what they give for an example.

    Args:
        steps: The steps.
        stem: Inputs to h_0; None is the identity.
        readout: Hidden state to features.
        padding: Where lengths lie; None if rows have no length.
        main_input: The name of the inputs; None if the example has no names.
        features: The features of the example at the first step, `(batch, width)`, or `(batch,
            length, width)` with an answer at each position.
    """

    steps: Steps
    stem: Callable[..., Tree] | None
    readout: ReadoutCall
    padding: Padding | None
    main_input: str | None
    features: Tensor


def read_encoder(
    encoder: nn.Module | Step | Sequence[Step] | Steps,
    example: Any,
    num_steps: int | None,
    per_position: bool,
    stem: Callable[..., Tree] | None,
    readout: Readout | None,
    layers: str | None,
) -> Encoder:
    """Read an encoder, and run one step of an example, in evaluation mode and without a gradient.

    Arguments as for `PonderWrapper.from_recipe`; `per_position` says whether there is an answer at
    each position.

    Raises:
        ArgumentError: The encoder cannot be read, is a classifier, or has features of another shape
            than a head can read.
    """
    captured: Captured | None = None
    is_stack = isinstance(encoder, nn.ModuleList | Steps)
    if isinstance(encoder, nn.Module) and not is_stack and num_steps is None:
        captured = capture(encoder, example, layers=layers)
        _check_has_no_head(captured)
        steps = captured.steps
        stem = captured.stem
    else:
        steps = Steps.of(encoder, num_steps)
    states = None if captured is None else captured.readout
    if states is not None and readout is None:
        chosen: ReadoutCall = states
    else:
        chosen = ReadoutCall(readout or readouts.identity, states=states)
    main_input, inputs, context = _split_example(example)
    parts = [steps, chosen]
    if isinstance(stem, nn.Module):
        parts.append(stem)
    with evaluating(nn.ModuleList(parts)):
        start = call_stem(stem, inputs, context)
        call = unwrap(start.context)
        hidden = steps(1, start.hidden, **call)
        features = chosen(hidden, **call)
        if features.dim() == 3 and readout is None and not per_position:
            chosen = ReadoutCall(readouts.mean, states=states)
            features = chosen(hidden, **call)
    _check_features(features, per_position)
    return Encoder(
        steps=steps,
        stem=stem,
        readout=chosen,
        padding=None if captured is None else captured.padding,
        main_input=main_input,
        features=features,
    )


def _split_example(example: Any) -> tuple[str | None, Any, dict[str, Any]]:
    """Return the name of the inputs (the first tensor), the inputs, and the context."""
    if not isinstance(example, Mapping):
        return None, example, {}
    context = {name: value for name, value in example.items() if value is not None}
    name = next((name for name, value in context.items() if tensors(value)), next(iter(context)))
    return name, context.pop(name), context


def _check_has_no_head(captured: Captured) -> None:
    """Refuse a classifier, whose last linear layer would be read as a part of the encoder."""
    name = captured.classifier
    if name is not None:
        raise ArgumentError(
            "module_or_steps",
            expected="an encoder, whose features new heads read",
            got=f"a model that ends in a head of its own, {name!r}",
            remedy=f"Take it off: module.{name} = nn.Identity() (in timm, num_classes=0). If it is "
            "not a head, build the model of the parts that ponder.capture returns.",
        )


def _check_features(features: Tensor, per_position: bool) -> None:
    """Refuse features that a linear head cannot read."""
    if features.dim() == (3 if per_position else 2) and features.is_floating_point():
        return
    shape = "(batch, length, width)" if per_position else "(batch, width)"
    raise ArgumentError(
        "readout",
        expected=f"features {shape} in floating point",
        got=f"{features.dtype} {tuple(features.shape)} at step 1 of the example",
        remedy="Pass readout=ponder.readouts.mean, say, or a function hidden -> features.",
    )
