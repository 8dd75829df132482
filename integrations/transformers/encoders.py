"""Encoders: which part of a model of Transformers is one, and which adapter reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_MAPPING, PreTrainedModel

from ponder._utils.trees import unwrap
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.integrations.transformers.adapter import Adapter, registry
from ponder.integrations.transformers.captured import FIELDS, CapturedAdapter, constants_of, on_meta
from ponder.integrations.transformers.examples import example_for
from ponder.parts.capturing.closeness import close
from ponder.parts.capturing.twin import evaluating_twin, unbound_forwards, varied_twin
from ponder.parts.readouts import ReadoutCall

__all__ = ["adapter_for", "check_block_sparse", "encoder_of", "is_exact"]


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

    The family's is taken where it `is_exact`: an encoder with code of its owner's around the layers is captured too.

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
        adapter = registry.get(family, encoder=encoder)
        if on_meta(encoder) or is_exact(encoder):
            return adapter
    return CapturedAdapter(encoder, num_steps)


@torch.no_grad()
def is_exact(encoder: PreTrainedModel) -> bool:
    """Whether the adapter of an encoder's family gives at full depth what the encoder gives, but for rounding.

    Both answer to an example of three short rows, with the encoder's weights and, where some are one number throughout,
    as new ones are, with others. Taken on trust are adapters of somebody else's, encoders that no example can be made
    up for, that cannot take it, or that answer to it at random.
    """
    try:
        example = example_for(encoder)
    except ArgumentError:
        return True
    still = evaluating_twin(encoder)
    for twin in filter(None, (still, varied_twin(still))):
        try:
            plain, again = (twin(**example, **constants_of(encoder)) for _ in range(2))
        except Exception:  # of inputs that it cannot take, or of weights that it cannot have
            return True
        told = [field for field in set(FIELDS.values()) if plain.get(field) is not None]
        if not all(close(again[field], plain[field]) for field in told):  # NaN, or what is drawn anew
            return next(unbound_forwards(encoder), None) is None
        try:
            adapter = registry.get(encoder.config.model_type, encoder=twin)
            own = _at_full_depth(adapter, example, told) if _is_ours(adapter) else {}
        except Exception:  # of an encoder whose parts were exchanged, whatever the adapter stumbles over
            return False
        if not all(close(mine, plain[field]) for field, mine in own.items()):
            return False
    return True


def _is_ours(adapter: Adapter) -> bool:
    """Whether an adapter is of this library; others answer for themselves (`ponder.testing`)."""
    return type(adapter).__module__.startswith("ponder.")


def _at_full_depth(adapter: Adapter, example: dict[str, Any], told: Sequence[str]) -> dict[str, Tensor]:
    """What an adapter reads after the last step, by the fields `told` of the encoder's own output."""
    hidden, context = adapter.stem(**example)
    given, steps = unwrap(context), adapter.steps()
    for number in range(1, steps.num_steps + 1):
        hidden = steps(number, hidden, **given)
    readouts = {
        field: ReadoutCall(adapter.readout(name))
        for name, field in FIELDS.items()
        if name != "mean" and field in told and adapter.has_readout(name)
    }
    return {field: readout(hidden, readout.reads(given)) for field, readout in readouts.items()}
