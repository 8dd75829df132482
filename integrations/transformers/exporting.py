"""The example, the tokenizer and the labels with which `ponder.export.onnx` traces a model."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ponder._utils.modes import evaluating
from ponder.cascade.stages import classes_of
from ponder.deploy.export import ExportSource
from ponder.errors import ArgumentError
from ponder.integrations.transformers.texts import max_positions

__all__ = ["source_of"]

_LENGTHS = (11, 11, 9, 7, 3)
"""Lengths of the rows of the example: five rows, since no other dimension has that size."""


def source_of(model: Any) -> ExportSource:
    """Return the source of an export; see `PonderPreTrainedModel.export_source`."""
    if model.main_input_name != "input_ids":
        expected = "a model that reads tokens"
        remedy = "Export its wrapper: ponder.export.onnx(model.ponder, folder, example=…)."
        raise ArgumentError(
            "model", expected=expected, got=f"one that reads {model.main_input_name}", remedy=remedy
        )
    encoder = model.encoder
    config = model.encoder.config.get_text_config()
    pad = int(config.pad_token_id or 0)
    longest = min(_LENGTHS[0], max_positions(encoder))
    lengths = torch.tensor(
        [max(1, length * longest // _LENGTHS[0]) for length in _LENGTHS], device=model.device
    )
    mask = (torch.arange(longest, device=model.device) < lengths[:, None]).long()
    ids = torch.full_like(mask, (pad + 1) % config.vocab_size).masked_fill(mask == 0, pad)
    types: dict[str, Tensor] = {}
    # A tokenizer without token types makes none for pairs of texts either.
    if model.tokenizer is None or "token_type_ids" in model.tokenizer.model_input_names:
        types = _zero_types(encoder, ids, mask)
    return ExportSource(
        model=model.ponder,
        inputs=ids,
        context={"attention_mask": mask, **types},
        name="input_ids",
        defaults={"attention_mask": 1.0, "token_type_ids": 0.0},
        tokenizer=model.tokenizer,
        max_length=max_positions(encoder),
        labels=classes_of(model) or (),
    )


def _zero_types(encoder: Any, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return token types of zeros, if the encoder answers with them as without token types.

    Not every encoder does: to GPT-2 they are tokens.
    """
    if "token_type_ids" not in inspect.signature(encoder.forward).parameters:
        return {}
    zeros = {"token_type_ids": torch.zeros_like(ids)}
    with evaluating(encoder):
        without = encoder(input_ids=ids, attention_mask=mask)[0]
        with_zeros = encoder(input_ids=ids, attention_mask=mask, **zeros)[0]
    if not torch.allclose(without, with_zeros, atol=1e-5, equal_nan=True):
        return {}
    return zeros
