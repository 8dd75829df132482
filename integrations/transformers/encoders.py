"""Encoders: which part of a model of Transformers is one, and which adapter reads it."""

from __future__ import annotations

from transformers import MODEL_MAPPING, PreTrainedModel

from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.integrations.transformers.adapter import Adapter, registry
from ponder.integrations.transformers.captured import CapturedAdapter

__all__ = ["adapter_for", "check_block_sparse", "encoder_of"]


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The bare encoder in a model: the model itself, or the encoder half of an encoder-decoder.

    Raises:
        ArgumentTypeError: It is no model of Transformers.
        ArgumentError: It has heads, or its encoder half cannot be used alone.

    Example:
        >>> encoder_of(encoder) is encoder
        True
    """
    if not isinstance(model, PreTrainedModel):
        raise ArgumentTypeError(
            "encoder",
            expected="a bare encoder of Transformers, a folder or a hub name",
            got=type(model).__name__,
            remedy="Wrap any other module with ponder.PonderWrapper, by ponder.capture.",
        )
    bare = MODEL_MAPPING.get(type(model.config), ())
    is_bare = type(model) in (bare if isinstance(bare, list | tuple) else (bare,))
    is_bare = is_bare and model.config.model_type != "ponder"  # to AutoModel, a `PonderModel` is bare too
    if not is_bare and model.base_model is not model and isinstance(model.base_model, PreTrainedModel):
        raise ArgumentError(
            "encoder",
            expected="a bare encoder",
            got=f"{type(model).__name__}, which has heads",
            remedy="Pass its base_model.",
        )
    if not getattr(type(model.config), "is_encoder_decoder", False):
        return model
    half = model.get_encoder()
    if not isinstance(half, PreTrainedModel):
        raise ArgumentError(
            "encoder",
            expected="an encoder-decoder whose encoder is a model of its own",
            got=f"{type(model).__name__}, whose encoder is a {type(half).__name__}",
            remedy="Capture it with an example of your own: ponder.capture(encoder, example).",
        )
    return half


def check_block_sparse(model: PreTrainedModel) -> None:
    """Refuse BigBird's block-sparse attention, which changes the model's own layers whenever a text is short.

    Raises:
        ArgumentError: The model runs it.
    """
    if getattr(model.config, "attention_type", None) == "block_sparse":
        raise ArgumentError(
            "encoder",
            expected="attention that does not depend on the length of the longest text",
            got="attention_type='block_sparse', which exchanges the model's layers for short texts",
            remedy="Load it with attention_type='original_full'.",
        )


def adapter_for(encoder: PreTrainedModel, num_steps: int | None = None) -> Adapter:
    """The adapter of an encoder: that of its family, found by its `model_type`, or else the encoder captured.

    Args:
        encoder: A bare encoder, or an encoder-decoder, whose encoder is read.
        num_steps: How many steps there are, where the encoder's weights are still to be loaded.

    Raises:
        ArgumentTypeError: It is no model of Transformers.
        ArgumentError: The model has heads already, runs flex attention, or cannot be captured (the message says why).

    Example:
        >>> adapter_for(encoder).width("mean")
        16
    """
    encoder = encoder_of(encoder)
    if encoder.config._attn_implementation == "flex_attention":
        raise ArgumentError(
            "encoder",
            expected="attention whose mask is a tensor, from which rows can leave",
            got="flex attention, whose mask is compiled for the whole batch",
            remedy="Load it with attn_implementation='sdpa'.",
        )
    check_block_sparse(encoder)
    family = encoder.config.model_type
    if family in registry.names():
        return registry.get(family, encoder=encoder)
    return CapturedAdapter(encoder, num_steps)
