"""What an adapter is: a Hugging Face encoder read as stem, steps and readouts.

Most families need none of their own: they are captured (`captured.py`). To write one, for a family that capture refuses
or to make it faster, write one module with a subclass of `EncoderAdapter`, register it under the family's `model_type`,
and import it before you build a model (or name it in the entry-point group ``ponder.adapters``).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from ponder._utils.registry import Registry
from ponder._utils.trees import Tree
from ponder.parts import readouts
from ponder.parts.padding import Along, Padding, masked
from ponder.parts.steps import Steps

__all__ = ["Adapter", "AdapterStem", "EncoderAdapter", "LayerStep", "StackAdapter", "layer_of", "registry"]


class Adapter(ABC):
    """An encoder as the parts of a `PonderWrapper`. It keeps its modules and weights; an adapter only calls them.

    Args:
        encoder: The bare encoder (`BertModel`, `ViTModel`, …).

    Example:
        >>> adapter = adapter_for(encoder)
        >>> hidden, context = adapter.stem(**batch)
        >>> hidden.shape, adapter.steps().num_steps, adapter.readout("tokens")(hidden).shape
        (torch.Size([5, 7, 16]), 4, torch.Size([5, 7, 16]))
    """

    borrows_modules = True

    def __init__(self, encoder: PreTrainedModel) -> None:
        self.encoder: Any = encoder

    @property
    def main_input(self) -> str:
        """The name of what the stem takes first: ``"input_ids"``, ``"pixel_values"``, …."""
        return "input_ids"

    @abstractmethod
    def stem(self, *args: Any, **kwargs: Any) -> tuple[Tree, dict[str, Any]]:
        """The encoder's arguments to h_0 and the context of the steps.

        The context has ``token_mask``, `(batch, length)` and 1 at real positions, or None: readouts take it.
        """

    @property
    def argument_names(self) -> frozenset[str]:
        """The names of what `stem` reads."""
        return frozenset(inspect.signature(self.stem).parameters)

    @abstractmethod
    def steps(self) -> Steps:
        """The layers as steps."""

    @abstractmethod
    def has_readout(self, name: str) -> bool:
        """Whether the encoder can be read so; see `readout`."""

    @abstractmethod
    def readout(self, name: str) -> Callable[..., Tensor]:
        """Hidden state to features, as if the encoder ended there.

        Args:
            name: ``"pooler"``, what the encoder's pooler gives; ``"mean"``, the mean of `last_hidden_state` over the
                real positions, final norm included; ``"tokens"``, `last_hidden_state` itself.
        """

    @abstractmethod
    def padding(self) -> Padding | None:
        """Say where lengths lie in what the stem takes and gives; None where batches do not get narrower."""

    def width(self, name: str) -> int:
        """The size of the features of a readout."""
        return int(self.encoder.config.hidden_size)


class AdapterStem(nn.Module):
    """The stem of an adapter as a module, by which a `PonderWrapper` owns the encoder: its weights and its modes.

    Args:
        adapter: The adapter.
    """

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.encoder = adapter.encoder
        self.adapter = adapter

    @property
    def argument_names(self) -> frozenset[str]:
        """The names of what the adapter's stem reads."""
        return self.adapter.argument_names

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tree, dict[str, Any]]:
        """See `Adapter.stem`."""
        return self.adapter.stem(*args, **kwargs)


class EncoderAdapter(Adapter):
    """One family of text encoders of BERT's kind, whose last layer's output is `last_hidden_state`.

    Args:
        encoder: The bare encoder (`AlbertModel`, `BertModel`, …).

    Example:
        >>> isinstance(adapter_for(encoder), EncoderAdapter), adapter_for(encoder).has_pooler
        (True, True)
    """

    extra_lengths: Mapping[str, Along] = MappingProxyType({})
    """Which dimensions of what `extra_context` gives are as long as the text; none by default."""

    @abstractmethod
    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """h_0 up to what the first layer reads, `(batch, length, width)`."""

    @abstractmethod
    def steps(self) -> Steps:
        """The layers as steps, called with `attention_mask` and what `extra_context` gives."""

    @abstractmethod
    def pool(self, hidden: Tensor) -> Tensor:
        """The first token through the encoder's pooler: `(batch, length, width)` → `(batch, width)`."""

    @property
    def has_pooler(self) -> bool:
        """Whether `pool` can be called; False for an encoder that was built without its pooler."""
        return getattr(self.encoder, "pooler", True) is not None

    def has_readout(self, name: str) -> bool:
        """See `Adapter.has_readout`."""
        return name != "pooler" or self.has_pooler

    def readout(self, name: str) -> Callable[..., Tensor]:
        """See `Adapter.readout`."""
        named: dict[str, Callable[..., Tensor]] = {
            "pooler": self.pool,
            "mean": _mean_of_tokens,
            "tokens": readouts.identity,
        }
        return named[name]

    def extra_context(self, hidden: Tensor) -> dict[str, Any]:
        """Further context of the layers, computed once a call; nothing by default."""
        return {}

    def stem(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Token ids `(batch, length)` to h_0 and the context of the steps.

        Context: `attention_mask`, in the form that the layers take; `token_mask`, the tokenizer's
        `(batch, length)`, for readouts; and the family's own.
        """
        hidden = self.embed(input_ids, token_type_ids)
        layer_mask = create_bidirectional_mask(
            config=self.encoder.config, inputs_embeds=hidden, attention_mask=attention_mask
        )
        of_keys = attention_mask is None or attention_mask.dim() == 2
        if of_keys and layer_mask is not None and layer_mask.dim() == 4:
            layer_mask = layer_mask[:, :, :1]  # all queries see the same keys
        return hidden, {
            "attention_mask": layer_mask,
            "token_mask": attention_mask if of_keys else None,
            **self.extra_context(hidden),
        }

    def joinable_stem(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """`stem` for rows that will meet longer ones: the layers' mask is there even where it hides nothing."""
        hidden, context = self.stem(input_ids, attention_mask, token_type_ids)
        if context["attention_mask"] is None:
            context["attention_mask"] = self._open_mask(hidden, attention_mask)
        return hidden, context

    def padding(self) -> Padding:
        """Say where lengths lie in what the stem takes and gives."""
        return Padding(
            inputs=Along(fill=getattr(self.encoder.config, "pad_token_id", None) or 0),
            context={
                "attention_mask": Along((-1,), fill=masked),
                "token_mask": Along((-1,)),
                "token_type_ids": Along((-1,)),
                **self.extra_lengths,
            },
            stem=self.joinable_stem,
        )

    def _open_mask(self, hidden: Tensor, token_mask: Tensor) -> Tensor:
        """A layers' mask that hides nothing, in the form that the encoder's attention takes."""
        shape = (hidden.shape[0], 1, 1, hidden.shape[1])
        match self.encoder.config._attn_implementation:
            case "sdpa":
                return torch.ones(shape, dtype=torch.bool, device=hidden.device)
            case "eager":
                return torch.zeros(shape, dtype=hidden.dtype, device=hidden.device)
            case _:
                return token_mask


class LayerStep:
    """A layer as a step, without owning it: the encoder already registers its weights.

    Args:
        layer: The layer, called as `layer(hidden, attention_mask, **context)`.

    Example:
        >>> step = LayerStep(encoder.encoder.layer[0])
        >>> step(torch.randn(5, 7, 16)).shape
        torch.Size([5, 7, 16])
    """

    borrows_modules = True

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(
        self, hidden: Tensor, attention_mask: Tensor | None = None, token_mask: Tensor | None = None, **context: Any
    ) -> Tensor:
        """One application of the layer."""
        output = self.layer(hidden, attention_mask, **context)
        after: Tensor = output[0] if isinstance(output, tuple) else output
        return after


def layer_of(step: nn.Module) -> int | None:
    """The identity of the layer that a step of a model runs, where it is a `LayerStep`; else None."""
    made = getattr(step, "fn", None)
    return id(made.layer) if isinstance(made, LayerStep) else None


class StackAdapter(EncoderAdapter):
    """The families of BERT's shape: a stack of layers in `encoder.layer`, and a `pooler` that reads all positions.

    Example:
        >>> adapter = adapter_for(encoder)
        >>> isinstance(adapter, StackAdapter), adapter.pool(torch.randn(5, 7, 16)).shape
        (True, torch.Size([5, 16]))
    """

    def steps(self) -> Steps:
        """One step a layer."""
        return Steps([LayerStep(layer) for layer in self.encoder.encoder.layer])

    def pool(self, hidden: Tensor) -> Tensor:
        """See `EncoderAdapter.pool`."""
        pooled: Tensor = self.encoder.pooler(hidden)
        return pooled


registry: Registry[EncoderAdapter] = Registry("adapter", "ponder.adapters")


def _mean_of_tokens(hidden: Tensor, token_mask: Tensor | None = None) -> Tensor:
    return readouts.mean(hidden, attention_mask=token_mask)
