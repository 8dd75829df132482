"""Who each row is, by its content: pipelines and data loaders reorder rows, and sampled exits depend on the row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["ids_by_content"]


def ids_by_content(given: Mapping[str, Any]) -> Tensor | None:
    """An id for each row, by its tokens, or by the numbers of an image or a sound; None where there are neither.

    What pads a row does not count, so that a row draws the same in every batch.

    Args:
        given: Inputs of a model of Transformers, by name.

    Returns:
        `(batch,)` int64, at least 0.

    Example:
        >>> ids = torch.tensor([[5, 6, 0], [5, 6, 7]])
        >>> alone, beside = ids_by_content({"input_ids": ids[:1, :2]}), ids_by_content(
        ...     {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
        ... )
        >>> (beside == alone).tolist()
        [True, False]
    """
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    if isinstance(ids, Tensor):
        real = torch.ones_like(ids) if mask is None else mask.long()
        return _mixed(ids.long(), real)
    for name in ("pixel_values", "input_values", "input_features"):
        numbers = given.get(name)
        if isinstance(numbers, Tensor):
            bits = numbers.float().flatten(1).view(torch.int32).long()
            return _mixed(bits, (bits != 0).long())  # sounds are padded with 0
    return None


def _mixed(values: Tensor, real: Tensor) -> Tensor:
    mixed = values * 0x9E3779B1 + real.cumsum(1) * 0x85EBCA77
    mixed = (mixed ^ (mixed >> 15)) * 0x2C1B3C6D
    return ((mixed ^ (mixed >> 12)) * real).sum(1) & 0x7FFFFFFFFFFFFFFF
