"""What an adapter is: one family of Hugging Face encoders, read as stem, steps and pooler.

To add a family, write one module with a subclass of `EncoderAdapter`, register it under the family's `model_type`,
and import it before you build a model (or name it in the entry-point group ``ponder.adapters``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from ponder._utils.registry import Registry
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.padding import Along, Padding, masked
from ponder.parts.steps import Steps

__all__ = ["EncoderAdapter", "LayerStep", "StackAdapter", "adapter_for", "registry"]

registry: Registry[EncoderAdapter] = Registry("adapter", "ponder.adapters")


class EncoderAdapter(ABC):
    """One family of encoders. The encoder keeps its modules and weights; an adapter only calls them.

    Args:
        encoder: The bare encoder (`AlbertModel`, `BertModel`, …).
    """

    borrows_modules = True
    extra_lengths: Mapping[str, Along] = MappingProxyType({})
    """Which dimensions of what `extra_context` gives are as long as the text; none by default."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        self.encoder: Any = encoder

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
        return True

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
        if layer_mask is not None and layer_mask.dim() == 4:
            layer_mask = layer_mask[:, :, :1]  # all queries see the same keys
        return hidden, {
            "attention_mask": layer_mask,
            "token_mask": attention_mask,
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
        """Where lengths lie in what the stem takes and gives."""
        return Padding(
            inputs=Along(fill=self.encoder.config.pad_token_id or 0),
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
    """

    borrows_modules = True

    def __init__(self, layer: torch.nn.Module) -> None:
        self.layer = layer

    def __call__(
        self, hidden: Tensor, attention_mask: Tensor | None = None, token_mask: Tensor | None = None, **context: Any
    ) -> Tensor:
        """One application of the layer."""
        output = self.layer(hidden, attention_mask, **context)
        after: Tensor = output[0] if isinstance(output, tuple) else output
        return after


class StackAdapter(EncoderAdapter):
    """The families of BERT's shape: a stack of layers in `encoder.layer`, and a `pooler` that reads all positions."""

    def steps(self) -> Steps:
        """One step a layer."""
        return Steps([LayerStep(layer) for layer in self.encoder.encoder.layer])

    @property
    def has_pooler(self) -> bool:
        """See `EncoderAdapter.has_pooler`."""
        return self.encoder.pooler is not None

    def pool(self, hidden: Tensor) -> Tensor:
        """See `EncoderAdapter.pool`."""
        pooled: Tensor = self.encoder.pooler(hidden)
        return pooled


def adapter_for(encoder: PreTrainedModel) -> EncoderAdapter:
    """The adapter of an encoder's family, found by its `model_type`.

    Raises:
        ArgumentTypeError: It is no model of Transformers.
        ArgumentError: There is none (the message says how to write one), or the model has heads already.
    """
    if not isinstance(encoder, PreTrainedModel):
        raise ArgumentTypeError(
            "encoder",
            expected="a bare encoder of Transformers, a folder or a hub name",
            got=type(encoder).__name__,
            remedy="Wrap any other module with ponder.PonderWrapper.",
        )
    if encoder.base_model is not encoder and isinstance(encoder.base_model, PreTrainedModel):
        raise ArgumentError(
            "encoder",
            expected="a bare encoder",
            got=f"{type(encoder).__name__}, which has heads",
            remedy="Pass its base_model.",
        )
    family = encoder.config.model_type
    if family not in registry.names():
        raise ArgumentError(
            "encoder",
            expected=f"an encoder of one of the families {', '.join(registry.names())}",
            got=f"model_type {family!r}",
            remedy="Write a subclass of ponder.integrations.transformers.EncoderAdapter with embed, steps and pool "
            f"(albert.py is one, of 40 lines), and decorate it with adapters.register({family!r}).",
        )
    return registry.get(family, encoder=encoder)
