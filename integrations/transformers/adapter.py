"""`Adapter`: an encoder of any family as stem, steps and readouts, by watching a call of it.

`ponder.capture` finds the layers and proves the parts on an example; the adapter adds what is of
Transformers: example inputs, names of readouts and of inputs, and weights that come later.
"""

from __future__ import annotations

import inspect
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from operator import methodcaller
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ponder._utils.modes import evaluating
from ponder._utils.trees import Tree, first_tensor, unwrap
from ponder.errors import ArgumentError
from ponder.integrations.transformers.families import (
    Arguments,
    PackedExample,
    constants_of,
    example_for,
    frames_mask,
    unpack,
)
from ponder.model import readouts
from ponder.model.capture import Captured, capture
from ponder.model.padding import Along, Padding
from ponder.model.steps import Context, ContextDict, Steps

__all__ = ["READOUTS", "Adapter", "AdapterStem", "Select", "as_long", "states_of"]

Select: TypeAlias = Callable[[Mapping[str, Tensor]], Tensor | None]
"""A function from the output of a model of Transformers to one of its tensors, if it has that."""
READOUTS: Mapping[str, Callable[..., Tensor]] = {
    "mean": readouts.mean,
    "first_token": readouts.first_token,
    "last_token": readouts.last_token,
    "tokens": readouts.identity,
}
"""How features are read from `last_hidden_state`; ``"pooler"`` is the pooler of the encoder."""
_DIMENSIONS_READ: Mapping[str, tuple[int, ...]] = {"pooler": (2,), "mean": (3, 4)}
"""Dimensions of the outputs that a readout reads; 3 for readouts that are not named here."""


class Adapter:
    """An encoder of any family as the parts of a `PonderWrapper`, proved by `ponder.capture`.

    It keeps its modules and weights; an adapter only calls them, and `AdapterStem` is the module
    that registers them.

    Args:
        encoder: The bare encoder (`BertModel`, `ViTModel`, …). If its weights are not loaded yet
            (Transformers loads into a model on the meta device), it is captured by `learn`; until
            then only `num_steps` is known.
        num_steps: N, if the encoder's weights are still to be loaded.
        example: An example, packed by `families.pack`. By default one is made up from the
            configuration.

    Raises:
        ArgumentError: The encoder cannot be captured; the message says why.

    Example:
        >>> adapter = Adapter(encoder)
        >>> hidden, context = adapter.stem(batch["input_ids"])
        >>> hidden.shape, adapter.steps().num_steps
        (torch.Size([5, 7, 16]), 4)
        >>> adapter.width("mean"), adapter.has_readout("pooler")
        (16, True)
    """

    selects: Mapping[str, Select] = MappingProxyType(
        {name: methodcaller("get", name) for name in ("pooler_output", "last_hidden_state")}
    )
    """Functions from the encoder's output to the tensors that readouts read."""

    def __init__(
        self,
        encoder: PreTrainedModel,
        num_steps: int | None = None,
        example: PackedExample | None = None,
    ) -> None:
        self.encoder: Any = encoder
        self.num_steps = num_steps or 0
        self.example = example
        self.parts: Captured | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shapes of the example's tensors, of what readouts read, and of the first and last state.

        The states are under the names ``"hidden"`` and ``"last"``.
        """
        self._accepted = frozenset(inspect.signature(encoder.forward).parameters)
        self._example_inputs: frozenset[str] = frozenset()
        self._readouts: dict[str, Callable[..., Tensor]] = {}
        if not any(weight.is_meta for weight in encoder.parameters()):
            self.learn()

    def learn(self) -> Captured:
        """Capture the encoder, with its weights, and read the shapes of its tensors."""
        encoder: PreTrainedModel = self.encoder
        _check_attention(encoder)
        main = encoder.main_input_name
        if self.example is None:
            example = example_for(encoder)
        else:
            example = unpack(self.example, encoder)
        call: Arguments = {main: example[main], **example, **constants_of(encoder)}
        self.parts = capture(encoder, call)
        inputs = {name: value for name, value in example.items() if isinstance(value, Tensor)}
        self._example_inputs = frozenset(inputs)
        self._read_shapes(self.parts, inputs, call)
        self.num_steps = self.parts.steps.num_steps
        return self.parts

    def _read_shapes(
        self, parts: Captured, inputs: Mapping[str, Tensor], call: Mapping[str, object]
    ) -> None:
        """Run the example once, as parts and as a whole, and note shapes and readouts.

        Args:
            parts: The encoder in parts.
            inputs: The tensors of the example.
            call: All arguments of the call of the whole encoder.
        """
        encoder = self.encoder
        main = encoder.main_input_name
        context = {name: value for name, value in inputs.items() if name != main}
        with evaluating(encoder):
            first, context_of_steps = parts.stem(inputs[main], **context)
            last: Tree = first
            for step in range(1, parts.steps.num_steps + 1):
                last = parts.steps(step, last, **unwrap(context_of_steps))
            output = encoder(**call)
            selected: dict[str, Tensor] = {}
            for name, select in self.selects.items():
                value = select(output)
                if value is not None:  # an encoder without a pooler has no pooler output
                    selected[name] = value
            self._readouts = {name: parts.readout_of(self.selects[name]) for name in selected}
        states = {"hidden": states_of(first), "last": states_of(last)}
        shown = {**inputs, **selected, **states}
        self.shapes = {name: tuple(value.shape) for name, value in shown.items()}

    @property
    def inputs(self) -> frozenset[str]:
        """Names of the parts of an encoding that the stem reads."""
        return self._accepted - {"labels", "start_positions", "end_positions"}

    @property
    def required(self) -> frozenset[str]:
        """Names of inputs without which answers would be wrong: those of the example.

        The main input, the mask and token types are left out.
        """
        return self._example_inputs - {
            self.encoder.main_input_name,
            "attention_mask",
            "token_type_ids",
        }

    def stem(self, inputs: Tree, **named: Any) -> tuple[Tree, ContextDict]:
        """Return h_0 and the context of the steps, from the encoder's arguments.

        The context has ``token_mask``, `(batch, length)` and 1 at real positions, if the call has
        such a mask: readouts take it. Token types are dropped if the encoder takes none.
        """
        if "token_type_ids" not in self._accepted:
            named.pop("token_type_ids", None)
        parts = self.parts or self.learn()
        hidden, context = parts.stem(inputs, **named)
        mask = named.get("attention_mask")
        if mask is None or mask.dim() != 2:
            return hidden, context
        states = states_of(hidden)
        if states.dim() == 3:  # an audio model has fewer frames than samples
            mask = frames_mask(self.encoder, mask, states.shape[1])
        context["token_mask"] = mask
        return hidden, context

    def steps(self) -> Steps:
        """Return the layers as steps; placeholders if the weights are not there yet."""
        if self.parts is None:
            return Steps([_not_captured_yet] * self.num_steps)
        return self.parts.steps

    def has_readout(self, name: str) -> bool:
        """Return whether the encoder has a readout; before the capture it may have every one."""
        if self.parts is None:
            return True
        dimensions = len(self.shapes.get(_field(name), ()))
        return dimensions in _DIMENSIONS_READ.get(name, (3,))

    def width(self, name: str) -> int:
        """Return the size of the features of a readout."""
        shape = self.shapes[_field(name)]
        if len(shape) == 4:  # a map of features, (batch, width, height, width of the map)
            return shape[1]
        return shape[-1]

    def output(self, field: str, hidden: Tree, context: Context) -> Tensor:
        """Return a selected output of the encoder, as if it ended with `hidden`."""
        return self._readouts[field](hidden, **context)

    def features(self, name: str, hidden: Tree, context: Context) -> Tensor:
        """Return the features of a hidden state: ``"pooler"``, or one of `READOUTS`."""
        if name == "pooler":
            return self.output("pooler_output", hidden, context)
        tokens = self.output("last_hidden_state", hidden, context)
        read = READOUTS[name]
        if tokens.dim() == 4:  # a map of features, (batch, width, height, width of the map)
            return tokens.mean((2, 3))
        if name in ("first_token", "tokens"):  # they need no mask
            return read(tokens)
        mask = as_long(context.get("token_mask"), tokens.shape[1])
        return read(tokens, attention_mask=mask)

    def readout(self, name: str) -> Callable[..., Tensor]:
        """Return `features` as a readout."""
        return partial(self._read, name)

    def _read(self, name: str, hidden: Tree, **context: Any) -> Tensor:
        return self.features(name, hidden, context)

    def padding(self) -> Padding | None:
        """Return the lengths of inputs and states; None if batches do not get narrower."""
        if self.parts is None or self.parts.padding is None:
            return None
        padding = self.parts.padding
        main = self.encoder.main_input_name
        length = self.shapes[padding.mask][1:]
        # Inputs with a value for each token, the boxes of a layout model say.
        of_tokens = [name for name in self._example_inputs if self.shapes[name][1:2] == length]
        beside = dict.fromkeys(("token_mask", "token_type_ids", *of_tokens), Along(fill=0))
        lengths = {
            name: along for name, along in beside.items() if name not in (main, padding.mask)
        }
        fill = 0
        if main == "input_ids":
            fill = getattr(self.encoder.config, "pad_token_id", None) or 0
        # A chain, and no copy: the stem adds lengths to its part for other kinds of calls.
        context: Any = ChainMap(lengths, padding.context)  # type: ignore[arg-type]
        return replace(padding, inputs=Along(fill=fill), context=context)


class AdapterStem(nn.Module):
    """The stem of an adapter as a module, so that a `PonderWrapper` registers the encoder.

    Args:
        adapter: The adapter.
        whole: The model that the encoder is a part of, or the encoder itself.
    """

    def __init__(self, adapter: Adapter, whole: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = whole
        self.adapter = adapter

    def forward(self, inputs: Tree, **context: Any) -> tuple[Tree, ContextDict]:
        """See `Adapter.stem`."""
        return self.adapter.stem(inputs, **context)


def states_of(hidden: Tree) -> Tensor:
    """Return the hidden state of a step's state, which may have further parts."""
    if isinstance(hidden, dict):
        states: Tensor = hidden["hidden"]
        return states
    return first_tensor(hidden)


def as_long(mask: Tensor | None, length: int) -> Tensor | None:
    """Return a mask resized to `length`: audio encoders have fewer tokens than samples."""
    if mask is None or mask.shape[1] == length:
        return mask
    places = torch.arange(length, device=mask.device) * mask.shape[1] // length
    return mask[:, places]


def _check_attention(encoder: PreTrainedModel) -> None:
    """Refuse block-sparse attention, which a call with a short text changes."""
    if getattr(encoder.config, "attention_type", None) == "block_sparse":
        raise ArgumentError(
            "encoder",
            expected="an encoder that a call does not change",
            got="block-sparse attention, which a short text turns into full attention for good",
            remedy='Set it first: config.attention_type = "original_full", before weights are '
            "loaded.",
        )


def _field(name: str) -> str:
    """Return the field of the encoder's output that a readout reads."""
    return "pooler_output" if name == "pooler" else "last_hidden_state"


def _not_captured_yet(hidden: Tree, **context: Any) -> Tree:
    """Refuse to run: a placeholder for a step whose weights are not loaded yet."""
    raise AssertionError("captured when the weights are loaded")
