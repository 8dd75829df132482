"""Adapters of families, and `adapter_for`, which finds the adapter of an encoder.

Most families need no own adapter: they are captured (`CapturedAdapter`). For a family that
capture refuses, or to make it faster, subclass `EncoderAdapter`, register it under the family's
`model_type`, and import it before you build a model (or name it in the entry-point group
``ponder.adapters``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import MODEL_MAPPING, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from ponder._utils.registry import Registry
from ponder._utils.trees import Shared
from ponder.integrations.transformers.adapter_contract import READOUTS, Adapter
from ponder.integrations.transformers.captured_adapter import CapturedAdapter
from ponder.integrations.transformers.families import PackedExample, encoder_of
from ponder.model.padding import Along, Padding, hidden_key
from ponder.model.steps import Context, ContextDict, Steps

__all__ = ["AlbertAdapter", "EncoderAdapter", "MPNetAdapter", "adapter_for", "registry"]

registry: Registry[EncoderAdapter] = Registry("adapter", "ponder.adapters")


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
        """Return one step for each layer."""
        return Steps([LayerStep(layer) for layer in self.encoder.encoder.layer])

    def pool(self, hidden: Tensor) -> Tensor:
        """Return the pooled first token: `(batch, length, width)` → `(batch, width)`."""
        pooled: Tensor = self.encoder.pooler(hidden)
        return pooled

    def has_readout(self, name: str) -> bool:
        """See `Adapter.has_readout`."""
        return name in READOUTS or (name == "pooler" and self.encoder.pooler is not None)

    def output(self, field: str, hidden: Tensor, context: Context) -> Tensor:
        """See `Adapter.output`."""
        if field == "last_hidden_state":
            return hidden
        return self.pool(hidden)

    def stem(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> tuple[Tensor, ContextDict]:
        """Return h_0 of token ids, `(batch, length)`, and the context of the steps.

        Context: `attention_mask`, in the form that the layers take, and `token_mask`, the
        tokenizer's `(batch, length)`, for readouts.
        """
        hidden = self.embed(input_ids, token_type_ids)
        layer_mask = create_bidirectional_mask(
            config=self.encoder.config, inputs_embeds=hidden, attention_mask=attention_mask
        )
        if attention_mask is not None and attention_mask.dim() != 2:
            # A mask of the caller's own form: which tokens are padding is not known.
            return hidden, {"attention_mask": layer_mask, "token_mask": None}
        if layer_mask is not None and layer_mask.dim() == 4:
            layer_mask = layer_mask[:, :, :1]  # all queries see the same keys
        return hidden, {"attention_mask": layer_mask, "token_mask": attention_mask}

    def padding(self) -> Padding:
        """See `Adapter.padding`; Transformers makes no mask if nothing is hidden."""
        fill = getattr(self.encoder.config, "pad_token_id", None) or 0
        lengths = {
            "attention_mask": Along((-1,), fill=hidden_key),
            "token_mask": Along((-1,)),
            "token_type_ids": Along((-1,)),
        }
        return Padding(inputs=Along(fill=fill), context=lengths, optional=True)


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
        """Apply the layer once."""
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
        """Return factorised embeddings, projected to the width of the layers."""
        hidden: Tensor = self.encoder.encoder.embedding_hidden_mapping_in(
            super().embed(input_ids, token_type_ids)
        )
        return hidden

    def steps(self) -> Steps:
        """Return N applications of the groups, in equal shares and in order."""
        config = self.encoder.config
        groups = [LayerStep(group) for group in self.encoder.encoder.albert_layer_groups]
        per_group = config.num_hidden_layers / config.num_hidden_groups
        schedule = [int(step / per_group) for step in range(config.num_hidden_layers)]
        return Steps(groups, schedule=schedule)

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
    ) -> tuple[Tensor, ContextDict]:
        """See `EncoderAdapter.stem`; `position_bias` is computed once a call."""
        hidden, context = super().stem(input_ids, attention_mask)
        bias = self.encoder.encoder.compute_position_bias(hidden[:1])
        return hidden, {**context, "position_bias": Shared(bias)}

    def padding(self) -> Padding:
        """See `Adapter.padding`."""
        padding = super().padding()
        lengths = {**padding.context, "position_bias": Along((-2, -1))}
        return replace(padding, context=lengths)


def adapter_for(
    encoder: PreTrainedModel, num_steps: int | None = None, example: PackedExample | None = None
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
    # A subclass, or a class of another package, may run other code around the layers.
    class_of_family: object = MODEL_MAPPING.get(type(config), None)
    is_of_family = type(encoder) is class_of_family
    is_decoder = getattr(config, "is_decoder", False)
    is_known = is_of_family and not is_decoder and config.model_type in registry.names()
    if is_known and example is None:
        return registry.get(config.model_type, encoder=encoder)
    return CapturedAdapter(encoder, num_steps, example)
