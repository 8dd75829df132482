"""The adapter of every family that has none of its own: the encoder is captured, from what its configuration says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ponder._utils.trees import Tree
from ponder.integrations.transformers.adapter import Adapter
from ponder.integrations.transformers.examples import example_for
from ponder.parts import readouts
from ponder.parts.capturing.joinable import JoinableStem
from ponder.parts.capturing.layered import LayeredModule, LayeredReadout
from ponder.parts.capturing.learning import first_output, learn
from ponder.parts.padding import Along, Padding
from ponder.parts.steps import Steps

__all__ = ["FIELDS", "CapturedAdapter", "as_long", "constants_of", "mask_of_frames", "on_meta"]

_COUNTS = ("num_hidden_layers", "encoder_layers", "num_layers")


class CapturedAdapter(Adapter):
    """An encoder of any family, read by `ponder.capture` and proved with the encoder's own weights.

    Weights that are not there yet (Transformers loads into a model on the meta device) put it off to the first call, or
    to `learned`.

    Args:
        encoder: The bare encoder.
        num_steps: How many layers there are, where weights are not there yet.

    Raises:
        ArgumentError: It cannot be captured; says why.

    Example:
        >>> from transformers import DistilBertConfig, DistilBertModel
        >>> distilbert = DistilBertModel(DistilBertConfig(vocab_size=40, n_layers=3, n_heads=2, dim=16, hidden_dim=24))
        >>> adapter = adapter_for(distilbert)
        >>> type(adapter).__name__, adapter.steps().num_steps
        ('CapturedAdapter', 3)
    """

    def __init__(self, encoder: PreTrainedModel, num_steps: int | None = None) -> None:
        super().__init__(encoder)
        self._layered: LayeredModule | None = None
        self._num_steps = num_steps
        self._takes = frozenset(inspect.signature(encoder.forward).parameters)
        if num_steps is None or not on_meta(encoder):
            self._num_steps = self.learned().num_steps

    def learned(self) -> LayeredModule:
        """What was learned of the encoder; learns it where that had to wait."""
        if self._layered is None:
            example = {**example_for(self.encoder), **constants_of(self.encoder)}
            count = next((getattr(self.encoder.config, name, None) for name in _COUNTS), None)
            self._layered = learn(self.encoder, example, count=count, reads=_what_is_read)
        return self._layered

    def forget(self) -> None:
        """Learn the encoder anew when it is next asked for, because modules of it were exchanged."""
        self._layered = None

    @property
    def main_input(self) -> str:
        """See `Adapter.main_input`."""
        return str(self.encoder.main_input_name)

    @property
    def argument_names(self) -> frozenset[str]:
        """What the encoder reads; the mask is for readouts too, and token types are left out where it has none."""
        return self._takes | {"attention_mask", "token_type_ids"}

    def stem(self, inputs: Tree = None, **named: Any) -> tuple[Tree, dict[str, Any]]:
        """See `Adapter.stem`; token types are left out where the encoder has none.

        The main input may be named, as in a call of the encoder.
        """
        if inputs is None:
            inputs = named.pop(self.main_input, None)
        if "token_type_ids" not in self._takes:
            named.pop("token_type_ids", None)
        hidden, context = self.learned().stem(inputs, **named)
        mask = context.pop("attention_mask", None)
        return hidden, {**context, "token_mask": self._token_mask(mask, named, hidden)}

    def steps(self) -> Steps:
        """See `Adapter.steps`."""
        assert self._num_steps is not None
        return Steps([_Step(self, number) for number in range(self._num_steps)])

    def has_readout(self, name: str) -> bool:
        """See `Adapter.has_readout`; taken on trust where the weights are not there yet."""
        if self._layered is None:
            return name in FIELDS
        return len(self.learned().shapes.get(FIELDS[name], ())) in _DIMENSIONS[name]

    def width(self, name: str) -> int:
        """See `Adapter.width`."""
        shape = self.learned().shapes[FIELDS[name]]
        return shape[1 if len(shape) == 4 else -1]

    def readout(self, name: str) -> Callable[..., Tensor]:
        """See `Adapter.readout`."""
        select = _SELECTED[name]
        if self._layered is None:
            return _LateReadout(self, name)
        read = self._layered.readout(select)
        return _MeanOfTokens(read) if name == "mean" else read

    def padding(self) -> Padding | None:
        """See `Adapter.padding`."""
        padding = None if self._layered is None else self._layered.padding
        if padding is None:
            return None
        own = replace(
            padding,
            inputs=Along(fill=getattr(self.encoder.config, "pad_token_id", None) or 0),
            stem=None if padding.stem is None else JoinableStem(self.stem, padding.mask, padding.real),
            pooled=True,
        )
        names = ("token_mask", "token_type_ids", "given_token_type_ids")  # of what the example had not
        self.learned().lengths.update(dict.fromkeys(names, Along(fill=0)))
        return own

    def _token_mask(self, mask: Tensor | None, named: dict[str, Any], hidden: Tree) -> Tensor | None:
        """The mask of the positions that layers see: audio encoders are given one of samples, which are more."""
        given = named.get("attention_mask") if mask is None else mask
        if given is not None and given.dim() != 2:  # of pairs of positions
            return None
        states = hidden["hidden"] if isinstance(hidden, dict) else hidden
        return given if given is None or states.dim() != 3 else mask_of_frames(self.encoder, given, states.shape[1])


class _Step:
    """Layer `number` of the adapter's encoder, counted from 0."""

    borrows_modules = True

    def __init__(self, adapter: CapturedAdapter, number: int) -> None:
        self.adapter, self.number = adapter, number

    def __call__(self, hidden: Tree, **context: Any) -> Tree:
        return self.adapter.learned().step(self.number, hidden, context)


class _LateReadout:
    """A readout of an encoder whose weights are not there yet."""

    borrows_modules = True

    def __init__(self, adapter: CapturedAdapter, name: str) -> None:
        self.adapter, self.name = adapter, name

    def __call__(self, hidden: Tree, **context: Any) -> Tensor:
        self.adapter.learned()
        return self.adapter.readout(self.name)(hidden, **context)


class _MeanOfTokens:
    """The mean of `last_hidden_state` over the tokens that are no padding."""

    borrows_modules = True

    def __init__(self, tokens: LayeredReadout) -> None:
        self.tokens = tokens
        hidden, *context = tokens.__signature__.parameters.values()
        self.__signature__ = Signature([hidden, Parameter("token_mask", Parameter.KEYWORD_ONLY), *context])

    def __call__(self, hidden: Tree, token_mask: Tensor | None = None, **context: Any) -> Tensor:
        tokens = self.tokens(hidden, **context)
        if tokens.dim() == 4:  # a map of features, (batch, width, height, width of the map)
            return tokens.mean((2, 3))
        return readouts.mean(tokens, attention_mask=as_long(token_mask, tokens.shape[1]))


def mask_of_frames(model: PreTrainedModel, mask: Tensor, length: int) -> Tensor:
    """The mask of the frames that a model of audio makes of samples, by its own count; another model's as it is.

    Args:
        model: The encoder, or a classifier with it.
        mask: What the model is called with, `(batch, samples)`.
        length: How many states there are; SEW's layers see fewer than there are frames.
    """
    shorten = getattr(model, "_get_feature_vector_attention_mask", None)
    if shorten is None or mask.shape[1] == length:
        return mask
    lengths = getattr(model, "_get_feat_extract_output_lengths", None)
    made = 0 if lengths is None else int(lengths(torch.tensor(mask.shape[1])))
    shortened: Tensor = shorten(max(made, length), mask)
    return shortened


def as_long(mask: Tensor | None, length: int) -> Tensor | None:
    """A mask of so many positions: audio encoders give more, or fewer, tokens than what their mask counts."""
    if mask is None or mask.shape[1] == length:
        return mask
    places = torch.arange(length, device=mask.device) * mask.shape[1] // length
    return mask[:, places]


def _pooler_output(output: Any) -> Any:
    return output["pooler_output"]


def _last_hidden_state(output: Any) -> Any:
    return output["last_hidden_state"]


def _what_is_read(output: Any) -> list[Any]:
    """All that the readouts read of an output, where it is there."""
    found = [output[name] for name in dict.fromkeys(FIELDS.values()) if output.get(name) is not None]
    return found or [first_output(output)]


FIELDS: Mapping[str, str] = {"pooler": "pooler_output", "mean": "last_hidden_state", "tokens": "last_hidden_state"}
"""What a readout reads of an encoder's output, by its name."""

_DIMENSIONS = {"pooler": (2,), "mean": (3, 4), "tokens": (3,)}
_SELECTED = {"pooler": _pooler_output, "mean": _last_hidden_state, "tokens": _last_hidden_state}


def on_meta(encoder: PreTrainedModel) -> bool:
    """Whether weights are not there yet, or wait elsewhere until they are called."""
    return any(parameter.device == torch.device("meta") for parameter in encoder.parameters())


def constants_of(encoder: PreTrainedModel) -> dict[str, Any]:
    """Arguments of every call: one pass needs no cache, and what the configuration would add is not read.

    Asked for states, Transformers would hook the layers anew in every call: what it notes of that is lost with a twin.
    """
    takes = inspect.signature(encoder.forward).parameters
    constants: dict[str, Any] = {name: False for name in ("use_cache", "use_mems") if name in takes}
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    wanted = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}
    for name, value in wanted.items():
        if getattr(encoder.config, name, value) != value and (name in takes or open_ended):
            constants[name] = value
    return constants
