"""The example, the tokenizer and the labels with which `ponder.export.onnx` traces a model."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ponder._utils.modes import evaluating
from ponder.cascade.stages import classes_of
from ponder.deploy.export import ExportSource
from ponder.errors import ArgumentError
from ponder.integrations.transformers.texts import max_positions

if TYPE_CHECKING:
    from ponder.integrations.transformers.modeling import PonderPreTrainedModel

__all__ = ["source_of"]

_LENGTHS = (11, 11, 9, 7, 3)
"""Lengths of the rows of the example: five rows, since no other dimension has that size."""


def source_of(model: PonderPreTrainedModel) -> ExportSource:
    """Return the source of an export; see `PonderPreTrainedModel.export_source`."""
    if model.main_input_name != "input_ids":
        raise ArgumentError(
            "model",
            expected="a model that reads tokens",
            got=f"one that reads {model.main_input_name}",
            remedy="Export its wrapper: ponder.export.onnx(model.ponder, folder, example=…).",
        )
    encoder = model.encoder
    config = encoder.config.get_text_config()
    max_length = max_positions(encoder)
    mask = _example_mask(max_length, model.device)
    pad = int(config.pad_token_id or 0)
    another = (pad + 1) % config.vocab_size
    ids = torch.full_like(mask, another).masked_fill(mask == 0, pad)
    context = {"attention_mask": mask}
    # A tokenizer without token types makes none for pairs of texts either.
    if model.tokenizer is None or "token_type_ids" in model.tokenizer.model_input_names:
        context |= _zero_types(encoder, ids, mask)
    return ExportSource(
        model=model.ponder,
        inputs=ids,
        context=context,
        name="input_ids",
        defaults={"attention_mask": 1.0, "token_type_ids": 0.0},
        tokenizer=model.tokenizer,
        max_length=max_length,
        labels=classes_of(model) or (),
    )


def _example_mask(max_length: int, device: torch.device) -> Tensor:
    """Return the mask of the example, `(rows, length)`, shortened to what the encoder takes."""
    longest = min(_LENGTHS[0], max_length)
    shortened = [max(1, length * longest // _LENGTHS[0]) for length in _LENGTHS]
    lengths = torch.tensor(shortened, device=device)
    return (torch.arange(longest, device=device) < lengths[:, None]).long()


def _zero_types(encoder: PreTrainedModel, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
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
