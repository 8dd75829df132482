"""Adapters: a Hugging Face encoder read as stem, steps and readouts.

Most families need no adapter: they are captured (`CapturedAdapter`). For a family that capture
refuses, or to make it faster, subclass `EncoderAdapter`, register it under the family's
`model_type`, and import it before you build a model (or name it in the entry-point group
``ponder.adapters``).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from operator import methodcaller
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from ponder._utils.modes import evaluating
from ponder._utils.registry import Registry
from ponder._utils.trees import Shared, Tree, first_tensor, unwrap
from ponder.errors import ArgumentError
from ponder.integrations.transformers.families import (
    constants_of,
    encoder_of,
    example_for,
    frames_mask,
    unpack,
)
from ponder.model import readouts
from ponder.model.capture import Captured, capture
from ponder.model.padding import Along, Padding, hidden_key
from ponder.model.steps import Steps

__all__ = [
    "READOUTS",
    "Adapter",
    "AdapterStem",
    "AlbertAdapter",
    "CapturedAdapter",
    "EncoderAdapter",
    "MPNetAdapter",
]
__all__ += ["adapter_for", "as_long", "registry", "states_of"]

READOUTS: Mapping[str, Callable[..., Tensor]] = {
    "mean": readouts.mean,
    "first_token": readouts.first_token,
    "last_token": readouts.last_token,
    "tokens": readouts.identity,
}
"""How features are read from `last_hidden_state`; ``"pooler"`` is the pooler of the encoder."""

registry: Registry[EncoderAdapter] = Registry("adapter", "ponder.adapters")


class Adapter(ABC):
    """An encoder as the parts of a `PonderWrapper`.

    It keeps its modules and weights; an adapter only calls them.

    Args:
        encoder: The bare encoder (`BertModel`, `ViTModel`, …).

    Example:
        >>> adapter = adapter_for(encoder)
        >>> hidden, context = adapter.stem(**batch)
        >>> hidden.shape, adapter.steps().num_steps
        (torch.Size([5, 7, 16]), 4)
        >>> adapter.features("tokens", hidden, context).shape
        torch.Size([5, 7, 16])
    """

    def __init__(self, encoder: PreTrainedModel) -> None:
        self.encoder: Any = encoder

    @abstractmethod
    def stem(self, *args: Any, **kwargs: Any) -> tuple[Tree, dict[str, Any]]:
        """The encoder's arguments to h_0 and the context of the steps.

        The context has ``token_mask``, `(batch, length)` and 1 at real positions, or None: readouts
        take it.
        """

    @abstractmethod
    def steps(self) -> Steps:
        """The layers as steps."""

    @abstractmethod
    def padding(self) -> Padding | None:
        """The lengths of inputs and states; None if batches do not get narrower."""

    @abstractmethod
    def has_readout(self, name: str) -> bool:
        """Return whether the encoder has a readout; see `features`."""

    @abstractmethod
    def output(self, field: str, hidden: Tree, context: Mapping[str, Any]) -> Tensor:
        """`last_hidden_state` or `pooler_output`, as if the encoder ended with `hidden`."""

    def features(self, name: str, hidden: Tree, context: Mapping[str, Any]) -> Tensor:
        """Return the features of a hidden state: ``"pooler"``, or one of `READOUTS`."""
        if name == "pooler":
            return self.output("pooler_output", hidden, context)
        tokens = self.output("last_hidden_state", hidden, context)
        if tokens.dim() == 4:  # a map of features, (batch, width, height, width of the map)
            return tokens.mean((2, 3))
        if name in ("first_token", "tokens"):
            return READOUTS[name](tokens)
        return READOUTS[name](
            tokens, attention_mask=as_long(context.get("token_mask"), tokens.shape[1])
        )

    def readout(self, name: str) -> Callable[..., Tensor]:
        """Return `features` as a readout."""
        return partial(self._read, name)

    def _read(self, name: str, hidden: Tree, **context: Any) -> Tensor:
        return self.features(name, hidden, context)

    def width(self, name: str) -> int:
        """Return the size of the features of a readout."""
        return int(self.encoder.config.hidden_size)

    @property
    def inputs(self) -> frozenset[str]:
        """Names of the parts of an encoding that the stem reads."""
        return frozenset(inspect.signature(self.stem).parameters)

    @property
    def required(self) -> frozenset[str]:
        """Names of inputs, except the main one, without which answers would be wrong."""
        return frozenset()


class AdapterStem(nn.Module):
    """The stem of an adapter as a module, so that a `PonderWrapper` registers the encoder.

    Args:
        adapter: The adapter.
        whole: The model that the encoder is a part of, or the encoder itself.
    """

    def __init__(self, adapter: Adapter, whole: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = whole
        self.adapter = adapter  # the model that the encoder is a part of, or the encoder itself

    def forward(self, inputs: Tree, **context: Any) -> tuple[Tree, dict[str, Any]]:
        """See `Adapter.stem`."""
        return self.adapter.stem(inputs, **context)


@registry.register("bert")
class EncoderAdapter(Adapter):
    """Text encoders like BERT: layers in `encoder.layer`, of which the last gives the output.

    Example:
        >>> type(adapter_for(encoder)).__name__, registry.names()
        ('EncoderAdapter', ['albert', 'bert', 'mpnet'])
    """

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Return h_0, the input of the first layer, `(batch, length, width)`."""
        embedded: Tensor = self.encoder.embeddings(
            input_ids=input_ids, token_type_ids=token_type_ids
        )
        return embedded

    def steps(self) -> Steps:
        """One step a layer."""
        return Steps([LayerStep(layer) for layer in self.encoder.encoder.layer])

    def pool(self, hidden: Tensor) -> Tensor:
        """Return the pooled first token: `(batch, length, width)` → `(batch, width)`."""
        pooled: Tensor = self.encoder.pooler(hidden)
        return pooled

    def has_readout(self, name: str) -> bool:
        """See `Adapter.has_readout`."""
        return name in READOUTS or (name == "pooler" and self.encoder.pooler is not None)

    def output(self, field: str, hidden: Tensor, context: Mapping[str, Any]) -> Tensor:
        """See `Adapter.output`."""
        if field == "last_hidden_state":
            return hidden
        return self.pool(hidden)

    def stem(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Token ids `(batch, length)` to h_0 and the context of the steps.

        Context: `attention_mask`, in the form that the layers take, and `token_mask`, the
        tokenizer's `(batch, length)`, for readouts.
        """
        hidden = self.embed(input_ids, token_type_ids)
        layer_mask = create_bidirectional_mask(
            config=self.encoder.config, inputs_embeds=hidden, attention_mask=attention_mask
        )
        of_keys = attention_mask is None or attention_mask.dim() == 2
        token_mask: Tensor | None = None
        if of_keys:
            token_mask = attention_mask
            if layer_mask is not None and layer_mask.dim() == 4:
                layer_mask = layer_mask[:, :, :1]  # all queries see the same keys
        return hidden, {"attention_mask": layer_mask, "token_mask": token_mask}

    def padding(self) -> Padding:
        """See `Adapter.padding`; a mask that hides nothing is None here."""
        return Padding(
            inputs=Along(fill=getattr(self.encoder.config, "pad_token_id", None) or 0),
            context={
                "attention_mask": Along((-1,), fill=hidden_key),
                "token_mask": Along((-1,)),
                "token_type_ids": Along((-1,)),
            },
            optional=True,
        )


class LayerStep:
    """A layer as a step, without owning it: the encoder already registers its weights."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
        **context: Any,
    ) -> Tensor:
        """One application of the layer."""
        output = self.layer(hidden, attention_mask, **context)
        if isinstance(output, tuple):
            output = output[0]
        after: Tensor = output
        return after


@registry.register("albert")
class AlbertAdapter(EncoderAdapter):
    """`AlbertModel`: one step is one application of a layer group, with all its inner layers.

    Example:
        >>> from transformers import AlbertConfig, AlbertModel
        >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
        >>> albert = AlbertModel(AlbertConfig(num_hidden_layers=6, **sizes))
        >>> adapter_for(albert).steps().schedule  # one group of layers, applied six times
        (0, 0, 0, 0, 0, 0)
    """

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Factorised embeddings, projected to the width of the layers."""
        hidden: Tensor = self.encoder.encoder.embedding_hidden_mapping_in(
            super().embed(input_ids, token_type_ids)
        )
        return hidden

    def steps(self) -> Steps:
        """N applications, the groups in equal shares, in order."""
        config = self.encoder.config
        groups = [LayerStep(group) for group in self.encoder.encoder.albert_layer_groups]
        per_group = config.num_hidden_layers / config.num_hidden_groups
        return Steps(
            groups, schedule=[int(step / per_group) for step in range(config.num_hidden_layers)]
        )

    def pool(self, hidden: Tensor) -> Tensor:
        """See `EncoderAdapter.pool`."""
        pooled: Tensor = self.encoder.pooler_activation(self.encoder.pooler(hidden[:, 0]))
        return pooled


@registry.register("mpnet")
class MPNetAdapter(EncoderAdapter):
    """`MPNetModel`: no token types, and a relative position bias that all layers share."""

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """See `EncoderAdapter.embed`."""
        embedded: Tensor = self.encoder.embeddings(input_ids=input_ids)
        return embedded

    def stem(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """See `EncoderAdapter.stem`; `position_bias` is computed once a call."""
        hidden, context = super().stem(input_ids, attention_mask)
        bias = self.encoder.encoder.compute_position_bias(hidden[:1])
        return hidden, {**context, "position_bias": Shared(bias)}

    def padding(self) -> Padding:
        """See `Adapter.padding`."""
        padding = super().padding()
        return replace(padding, context={**padding.context, "position_bias": Along((-2, -1))})


class CapturedAdapter(Adapter):
    """An encoder of any family, read by `ponder.capture`, which proves that its parts are right.

    If the weights are not loaded yet (Transformers loads into a model on the meta device), it is
    captured by `learn`; until then only `num_steps` is known. An `example`, packed by
    `families.pack`, is by default made up from the configuration.

    Example:
        >>> from transformers import DistilBertConfig, DistilBertModel
        >>> config = DistilBertConfig(vocab_size=40, n_layers=3, n_heads=2, dim=16, hidden_dim=24)
        >>> adapter = adapter_for(DistilBertModel(config))
        >>> type(adapter).__name__, adapter.steps().num_steps
        ('CapturedAdapter', 3)
    """

    selects: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
        {name: methodcaller("get", name) for name in ("pooler_output", "last_hidden_state")}
    )
    """Functions from the encoder's output to the tensors that readouts read."""

    def __init__(
        self,
        encoder: PreTrainedModel,
        num_steps: int | None = None,
        example: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder)
        self.num_steps = num_steps or 0
        self.example = example
        self.parts: Captured | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._takes = frozenset(inspect.signature(encoder.forward).parameters)
        self._given: frozenset[str] = frozenset()
        self._readouts: dict[str, Callable[..., Tensor]] = {}
        if not any(weight.is_meta for weight in encoder.parameters()):
            self.learn()

    def learn(self) -> Captured:
        """Capture the encoder, with its weights."""
        encoder = self.encoder
        main = self.encoder.main_input_name
        if getattr(encoder.config, "attention_type", None) == "block_sparse":
            expected = "an encoder that a call does not change"
            got = "block-sparse attention, which a short text turns into full attention for good"
            remedy = (
                'Set it first: config.attention_type = "original_full", before weights are loaded.'
            )
            raise ArgumentError("encoder", expected=expected, got=got, remedy=remedy)
        if self.example is None:
            example = example_for(encoder)
        else:
            example = unpack(self.example, encoder)
        call = {main: example[main], **example, **constants_of(encoder)}
        given = {name: value for name, value in example.items() if isinstance(value, Tensor)}
        self._given = frozenset(given)
        parts = self.parts = capture(encoder, call)
        others = {name: value for name, value in given.items() if name != main}
        with evaluating(encoder):
            hidden, around = parts.stem(given[main], **others)
            last: Tree = hidden
            for step in range(1, parts.steps.num_steps + 1):
                last = parts.steps(step, last, **unwrap(around))
            output = encoder(**call)
            seen: dict[str, Tensor] = {}
            for name, select in self.selects.items():
                value = select(output)
                if value is not None:
                    seen[name] = value
            self._readouts = {name: parts.readout_of(self.selects[name]) for name in seen}
        shown = {**given, **seen, "hidden": states_of(hidden), "last": states_of(last)}
        self.shapes = {name: tuple(value.shape) for name, value in shown.items()}
        self.num_steps = parts.steps.num_steps
        return parts

    @property
    def inputs(self) -> frozenset[str]:
        """See `Adapter.inputs`."""
        return self._takes - {"labels", "start_positions", "end_positions"}

    @property
    def required(self) -> frozenset[str]:
        """See `Adapter.required`: the inputs of the example but the mask and token types."""
        return self._given - {self.encoder.main_input_name, "attention_mask", "token_type_ids"}

    def stem(self, inputs: Tree, **named: Any) -> tuple[Tree, dict[str, Any]]:
        """See `Adapter.stem`; token types are dropped if the encoder takes none."""
        if "token_type_ids" not in self._takes:
            named.pop("token_type_ids", None)
        hidden, context = (self.parts or self.learn()).stem(inputs, **named)
        mask = named.get("attention_mask")
        if mask is not None and mask.dim() == 2:
            states = states_of(hidden)
            if states.dim() != 3:
                context["token_mask"] = mask
            else:
                context["token_mask"] = frames_mask(self.encoder, mask, states.shape[1])
        return hidden, context

    def steps(self) -> Steps:
        """See `Adapter.steps`; of weights that are not there yet, placeholders."""
        if self.parts is None:
            return Steps([_later] * self.num_steps)
        return self.parts.steps

    def has_readout(self, name: str) -> bool:
        """See `Adapter.has_readout`."""
        dimensions = len(self.shapes.get(_field(name), ()))
        return self.parts is None or dimensions in {"pooler": (2,), "mean": (3, 4)}.get(name, (3,))

    def width(self, name: str) -> int:
        """See `Adapter.width`."""
        shape = self.shapes[_field(name)]
        if len(shape) == 4:  # a map of features, (batch, width, height, width of the map)
            return shape[1]
        return shape[-1]

    def output(self, field: str, hidden: Tree, context: Mapping[str, Any]) -> Tensor:
        """See `Adapter.output`."""
        return self._readouts[field](hidden, **context)

    def padding(self) -> Padding | None:
        """See `Adapter.padding`."""
        if self.parts is None or self.parts.padding is None:
            return None
        padding = self.parts.padding
        of_text = self.encoder.main_input_name == "input_ids"
        length = self.shapes[padding.mask][1:]
        long = [name for name in self._given if self.shapes[name][1:2] == length]  # boxes, say
        own: dict[str, Any] = dict.fromkeys(("token_mask", "token_type_ids", *long), Along(fill=0))
        own.pop(self.encoder.main_input_name, None)
        own.pop(padding.mask, None)
        fill = 0
        if of_text:
            fill = getattr(self.encoder.config, "pad_token_id", None) or 0
        later: Any = padding.context  # the stem adds lengths to it for other kinds of calls
        return replace(padding, inputs=Along(fill=fill), context=ChainMap(own, later))


def adapter_for(
    encoder: PreTrainedModel, num_steps: int | None = None, example: Mapping[str, Any] | None = None
) -> Adapter:
    """Return the adapter of an encoder: that of its `model_type`, or else a captured one.

    Args:
        encoder: A bare encoder, or an encoder-decoder, whose encoder is read.
        num_steps: N, if the encoder's weights are still to be loaded.
        example: An example, packed by `families.pack`; the encoder is then captured with it.

    Raises:
        ArgumentError: The model has heads already, or cannot be captured (the message says why).

    Example:
        >>> adapter_for(encoder).width("mean")
        16
    """
    encoder = encoder_of(encoder)
    config = encoder.config
    kind: Any = type(encoder)
    # Another class may run other code around the layers.
    plain = kind is MODEL_MAPPING.get(type(config), None)
    if (
        plain
        and example is None
        and config.model_type in registry.names()
        and not getattr(config, "is_decoder", False)
    ):
        return registry.get(config.model_type, encoder=encoder)
    return CapturedAdapter(encoder, num_steps, example)


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


def _field(name: str) -> str:
    return "pooler_output" if name == "pooler" else "last_hidden_state"


def _later(hidden: Tree, **context: Any) -> Tree:
    raise AssertionError("captured when the weights are loaded")
