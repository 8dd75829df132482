"""Arguments of models: those that are none, and those that a model that exits early cannot honour."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ponder.errors import ArgumentError, ArgumentTypeError

__all__ = ["check_fields", "check_ignored", "count_labels", "honoured", "not_handed_on", "span_labels"]

_ARGUMENTS = (
    "recipe",
    "num_labels",
    "readout",
    "policy",
    "problem_type",
    "head_dropout",
    "dtype",
    "attn_implementation",
    "device_map",
)

_REMEDIES: Mapping[str, str] = {
    "inputs_embeds": "Pass input_ids; for embeddings, ponder.capture the encoder with an example of them.",
    "output_attentions": "Leave it out, and ask the plain encoder.",
    "output_hidden_states": "Leave it out; model.unroll(…, keep_features=True) gives what heads read at every step.",
    "return_dict": "Leave it out; fields are read by name, and a ModelOutput has .to_tuple().",
}


def check_fields(config: Mapping[str, Any]) -> None:
    """Refuse what is no field of a configuration, which the base class of configurations would keep in silence.

    So are fields refused that ask for what such models do not give.
    """
    honoured(config)
    fields = {field.name for field in dataclasses.fields(PretrainedConfig)}
    for name in config:
        if name not in fields:
            close = get_close_matches(name, (*_ARGUMENTS, *fields), n=1, cutoff=0.6)
            raise ArgumentTypeError(
                name,
                expected="an argument of from_encoder, or a field of every configuration of Transformers",
                got=f"{name!r}, which is neither",
                remedy=f"Did you mean {close[0]!r}?" if close else "Leave it out, or set it on model.config.",
            )


def count_labels(num_labels: int | None, id2label: Any) -> int:
    """The number of labels: that of their names, where those are given."""
    if not id2label:
        return 2 if num_labels is None else num_labels
    if num_labels not in (None, len(id2label)):
        raise ArgumentError(
            "num_labels",
            expected=f"the number of names in id2label, {len(id2label)}",
            got=num_labels,
            remedy="Leave it out, or name all labels.",
        )
    return len(id2label)


def honoured(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a call is left with: those of these arguments that ask for nothing, as None or False, are dropped.

    Raises:
        ArgumentError: One of them asks for something.
    """
    for name, value in given.items():
        if name in _REMEDIES and value is not None and value is not (name == "return_dict"):
            raise ArgumentError(
                name,
                expected="None: a model that exits early has no such thing",
                got=repr(value) if isinstance(value, bool) else type(value).__name__,
                remedy=_REMEDIES[name],
            )
    return {name: value for name, value in given.items() if name not in _REMEDIES}


def check_ignored(given: Mapping[str, Any], encoder: PreTrainedModel) -> None:
    """Refuse arguments that a call would not honour; those that are passed as None or False ask for nothing."""
    for name, value in honoured(given).items():
        if value is None or value is False:
            continue
        if name != "task_ids" and name not in inspect.signature(encoder.forward).parameters:
            raise TypeError(f"forward() got an unexpected keyword argument {name!r}")
        raise not_handed_on(name, type(value).__name__)


def not_handed_on(name: str, got: str) -> ArgumentError:
    """The error for an input that the encoder is not given."""
    return ArgumentError(
        name,
        expected="no input besides the main one, its mask and token types: the encoder gets no other",
        got=got,
        remedy="Leave it out where it says nothing; else ponder.capture(encoder, example) with it in the example, and "
        "put ponder.PonderWrapper around the parts.",
    )


def span_labels(start_positions: Tensor | None, end_positions: Tensor | None) -> Tensor | None:
    """The labels of spans, `(batch, 2)`, of their first and last places, `(batch,)` each; None where there are none.

    Raises:
        ArgumentError: There is one without the other.
    """
    if start_positions is None and end_positions is None:
        return None
    if start_positions is None or end_positions is None:
        raise ArgumentError(
            "start_positions and end_positions", expected="both or neither", got="one", remedy="Pass both."
        )
    return torch.stack([start_positions.reshape(-1), end_positions.reshape(-1)], dim=1)
