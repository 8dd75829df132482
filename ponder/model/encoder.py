"""From an encoder and an example to the parts of a model, before heads are added."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ponder import model
from ponder._utils.modes import evaluating
from ponder._utils.trees import Tree, tensors, unwrap
from ponder.errors import ArgumentError
from ponder.model import readouts
from ponder.model.padding import Padding
from ponder.model.readouts import Readout, ReadoutCall
from ponder.model.source import call_stem
from ponder.model.steps import ContextDict, Step, Steps

if TYPE_CHECKING:
    from ponder.model.capture import Captured
    from ponder.model.twins import Example

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
    example: Example,
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
    body = _read_body(encoder, example, num_steps, stem, layers)
    chosen = body.readout_with(readout)
    named = _name_inputs(example)
    parts = [body.steps, chosen]
    if isinstance(body.stem, nn.Module):
        parts.append(body.stem)
    with evaluating(nn.ModuleList(parts)):
        start = call_stem(body.stem, named.inputs, named.context)
        call = unwrap(start.context)
        hidden = body.steps(1, start.hidden, **call)
        features = chosen(hidden, **call)
        if features.dim() == 3 and readout is None and not per_position:
            chosen = ReadoutCall(readouts.mean, states=body.states)
            features = chosen(hidden, **call)
    _check_features(features, per_position)
    return Encoder(
        steps=body.steps,
        stem=body.stem,
        readout=chosen,
        padding=body.padding,
        main_input=named.name,
        features=features,
    )


@dataclass(frozen=True)
class _Body:
    """The parts of an encoder before a readout is chosen.

    Args:
        steps: The steps.
        stem: Inputs to h_0; None is the identity.
        states: The readout of a captured module, whose features a user's readout reads; None if the
            encoder was not captured.
        padding: Where lengths lie; None if rows have no length.
    """

    steps: Steps
    stem: Callable[..., Tree] | None
    states: ReadoutCall | None = None
    padding: Padding | None = None

    def readout_with(self, readout: Readout | None) -> ReadoutCall:
        """Return the user's readout, or by default that of the encoder."""
        if readout is None and self.states is not None:
            return self.states
        return ReadoutCall(readout or readouts.identity, states=self.states)


def _read_body(
    encoder: nn.Module | Step | Sequence[Step] | Steps,
    example: Example,
    num_steps: int | None,
    stem: Callable[..., Tree] | None,
    layers: str | None,
) -> _Body:
    """Capture a module that runs its layers itself; take steps, or a list of them, unchanged."""
    is_stack = isinstance(encoder, nn.ModuleList | Steps)
    if not isinstance(encoder, nn.Module) or is_stack or num_steps is not None:
        return _Body(Steps.of(encoder, num_steps), stem)
    captured = model.capture.capture(encoder, example, layers=layers)
    _check_has_no_head(captured)
    return _Body(captured.steps, captured.stem, captured.readout, captured.padding)


@dataclass(frozen=True)
class _NamedInputs:
    """The inputs of an example with their name, None if it has no names, and its context."""

    name: str | None
    inputs: Tree
    context: ContextDict


def _name_inputs(example: Example) -> _NamedInputs:
    """Separate the inputs of an example, its first tensor, from its context."""
    if not isinstance(example, Mapping):
        return _NamedInputs(None, example, {})
    context = {name: value for name, value in example.items() if value is not None}
    name = next((name for name, value in context.items() if tensors(value)), next(iter(context)))
    return _NamedInputs(name, context.pop(name), context)


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
    dims = 2
    shape = "(batch, width)"
    if per_position:
        dims = 3
        shape = "(batch, length, width)"
    if features.dim() == dims and features.is_floating_point():
        return
    raise ArgumentError(
        "readout",
        expected=f"features {shape} in floating point",
        got=f"{features.dtype} {tuple(features.shape)} at step 1 of the example",
        remedy="Pass readout=ponder.readouts.mean, say, or a function hidden -> features.",
    )
