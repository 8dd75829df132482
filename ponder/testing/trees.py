"""Nested states, compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.trees import Tree

__all__ = ["close", "same"]


def same(first: Tree, second: Tree) -> bool:
    """Whether two trees have one structure and equal leaves, bit for bit; NaN equals NaN."""
    return _alike(first, second, torch.equal)


def close(first: Tree, second: Tree, tolerance: float) -> bool:
    """Whether two trees have one structure and leaves that are equal up to rounding."""
    return _alike(first, second, lambda a, b: torch.allclose(a, b, rtol=tolerance, atol=tolerance))


def _alike(first: Any, second: Any, equal: Any) -> bool:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
            return False
        if first.shape != second.shape or first.dtype != second.dtype or first.device != second.device:
            return False
        if first.is_floating_point():
            nan = first.isnan()
            return torch.equal(nan, second.isnan()) and bool(equal(first[~nan], second[~nan]))
        return torch.equal(first, second)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_alike(first[key], second[key], equal) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(_alike(a, b, equal) for a, b in zip(first, second, strict=True))
    if isinstance(first, nn.Module) and isinstance(second, nn.Module):
        return type(first) is type(second) and _alike(first.state_dict(), second.state_dict(), equal)
    return bool(first == second)
