"""Arguments that Transformers and its friends pass to any model, and that one that exits early cannot honour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ponder.errors import ArgumentError

__all__ = ["honoured", "span_labels"]

_REMEDIES: Mapping[str, str] = {
    "inputs_embeds": "Pass input_ids; for embeddings, ponder.capture the encoder with an example of them.",
    "output_attentions": "Leave it out, and ask the plain encoder.",
    "output_hidden_states": "Leave it out; model.unroll(…, keep_features=True) gives what heads read at every step.",
    "return_dict": "Leave it out; fields are read by name, and a ModelOutput has .to_tuple().",
}


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
