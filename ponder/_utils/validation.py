"""Checks of what a user hands to the wrapper, when it is built and once a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.heads import PerStep

__all__ = ["as_row_ids", "check_head", "check_masks", "check_type"]


def check_head(head: nn.Module, num_steps: int) -> nn.Module:
    """A head that can be called, and has one part for each step where it is `PerStep`."""
    if not callable(head) or isinstance(head, nn.ModuleList | nn.ModuleDict):
        raise ArgumentTypeError(
            "head",
            expected="a module features -> outputs",
            got=type(head).__name__,
            remedy="Pass nn.Linear(…), say, or ponder.PerStep([…]) for one head a step.",
        )
    if isinstance(head, PerStep) and len(head) != num_steps:
        raise ArgumentError(
            "head",
            expected=f"one head for each of {num_steps} steps",
            got=f"{len(head)} heads",
            remedy="Match them.",
        )
    return head


def check_type(argument: str, value: object, kind: type) -> None:
    """Refuse what is not of a kind."""
    if not isinstance(value, kind):
        raise ArgumentTypeError(
            argument, expected=kind.__name__, got=type(value).__name__, remedy=f"Pass one of {kind.__module__}."
        )


def check_masks(context: Mapping[str, Any]) -> None:
    """Refuse rows without one real position: their attention is undefined, and their mean is no answer."""
    for name, real in (("attention_mask", True), ("src_key_padding_mask", False)):
        mask = context.get(name)
        if isinstance(mask, Tensor) and mask.dim() == 2 and not mask.is_floating_point():
            empty = ~((mask != 0) == real).any(1)
            if bool(empty.any()):
                raise ArgumentError(
                    name,
                    expected="at least one real position in every row",
                    got=f"none in rows {empty.nonzero().flatten().tolist()}",
                    remedy="Drop empty examples before the model, or answer them yourself.",
                )


def as_row_ids(row_ids: Tensor | None, size: int, device: torch.device) -> Tensor:
    """Row ids, `(batch,)` long; the positions where None."""
    if row_ids is None:
        return torch.arange(size, device=device)
    if not isinstance(row_ids, Tensor) or row_ids.shape != (size,) or row_ids.is_floating_point():
        got = f"{row_ids.dtype} {tuple(row_ids.shape)}" if isinstance(row_ids, Tensor) else type(row_ids).__name__
        raise ArgumentError("row_ids", expected=f"integers, shape ({size},)", got=got, remedy="One id for each row.")
    return row_ids.to(device=device, dtype=torch.long)
