"""Nested states, compared and joined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ponder.rows import Tree, map_tensors

__all__ = ["DifferentStates", "close", "join", "same"]


class DifferentStates(Exception):  # noqa: N818 (it is caught here and becomes a ContractError)
    """Two states cannot travel in one batch."""


def same(first: Tree, second: Tree) -> bool:
    """Whether two trees have one structure and equal leaves, bit for bit; NaN equals NaN."""
    return _alike(first, second, torch.equal)


def close(first: Tree, second: Tree, tolerance: float) -> bool:
    """Whether two trees have one structure and leaves that are equal up to rounding."""
    return _alike(first, second, lambda a, b: torch.allclose(a, b, rtol=tolerance, atol=tolerance))


def join(first: Tree, second: Tree, rows: tuple[int, int]) -> Tree:
    """The rows of two states, one behind the other; where one has None and the other a tensor, None is zeros.

    Args:
        first: State of the first rows.
        second: State of the others.
        rows: How many there are of each.

    Raises:
        DifferentStates: The structures differ, or a leaf that is no tensor does.
    """
    if first is None and second is None:
        return None
    if first is None or second is None:
        return _joined_with_zeros(first, second, rows)
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape[1:] != second.shape[1:]:
            raise DifferentStates(f"{_form(first)} at one depth and {_form(second)} at another")
        return torch.cat([first, second])  # promotes: a state that starts in float32 may meet hazards in float64
    if type(first) is not type(second):
        raise DifferentStates(f"{type(first).__name__} at one depth and {type(second).__name__} at another")
    if isinstance(first, Mapping):
        if first.keys() != second.keys():
            raise DifferentStates(f"keys {sorted(first)} at one depth and {sorted(second)} at another")
        return type(first)({key: join(first[key], second[key], rows) for key in first})  # type: ignore[call-arg]
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            raise DifferentStates(f"{len(first)} parts at one depth and {len(second)} at another")
        parts = [join(a, b, rows) for a, b in zip(first, second, strict=True)]
        return type(first)(*parts) if _is_named(first) else type(first)(parts)
    if first != second:
        raise DifferentStates(f"{first!r}, which is no tensor, at one depth and {second!r} at another")
    return first


def _joined_with_zeros(first: Tree, second: Tree, rows: tuple[int, int]) -> Tree:
    filled = 0 if first is None else 1

    def zeros(tensor: Tensor) -> Tensor:
        return tensor.new_zeros((rows[filled], *tensor.shape[1:]))

    present = second if first is None else first
    absent = map_tensors(zeros, present)
    return join(absent, present, rows) if first is None else join(present, absent, rows)


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
    return bool(first == second)


def _is_named(tree: Any) -> bool:
    return hasattr(tree, "_fields")


def _form(tensor: Tensor) -> str:
    return f"a tensor (batch{''.join(f', {n}' for n in tensor.shape[1:])})"
