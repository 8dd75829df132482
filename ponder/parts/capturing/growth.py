"""Which dimension of a tensor holds the rows of a batch, and which the length of its sequences: learned by growth.

The same forward is run with one row more, or one column more. A dimension that grew holds what was added; a tensor that
did not grow belongs to the whole batch (a rotary table, a relative position bias).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ponder.errors import ArgumentError

__all__ = [
    "Axis",
    "grown_lengths",
    "grown_rows",
    "has_rows",
    "is_long",
    "merge_rows",
    "one_column_less",
    "one_more_column",
    "one_more_row",
    "one_row_less",
    "reversed_rows",
    "split_rows",
]

Arguments = Mapping[str | int, Any]


@dataclass(frozen=True)
class Axis:
    """The dimension of a tensor that holds the rows.

    Args:
        dim: The dimension.
        folded: Whether several entries of it belong to one row, as where rows and positions share a dimension.
    """

    dim: int = 0
    folded: bool = False


def one_more_row(given: Arguments, rows: int) -> dict[str | int, Any]:
    """Arguments by name or place, with the first row once more at the end of every tensor that has rows."""
    return _changed(given, lambda value: has_rows(value, rows), lambda value: torch.cat([value, value[:1]]))


def one_row_less(given: Arguments, rows: int) -> dict[str | int, Any]:
    """Arguments without the first row of every tensor that has rows; copies, since a call may write into them."""
    return _changed(given, lambda value: has_rows(value, rows), lambda value: value[1:].clone())


def reversed_rows(given: Arguments, rows: int) -> dict[str | int, Any]:
    """Arguments with the rows of every tensor that has rows the other way round; copies."""
    return _changed(given, lambda value: has_rows(value, rows), lambda value: value.flip(0))


def one_more_column(given: Arguments, rows: int, length: int) -> dict[str | int, Any]:
    """Arguments with the last column once more at the end of every tensor `(rows, length, …)`."""
    return _changed(
        given, lambda value: is_long(value, rows, length), lambda value: torch.cat([value, value[:, -1:]], 1)
    )


def one_column_less(given: Arguments, rows: int, length: int) -> dict[str | int, Any]:
    """Arguments without the last column of every tensor `(rows, length, …)`."""
    return _changed(given, lambda value: is_long(value, rows, length), lambda value: value[:, :-1])


def is_long(value: Any, rows: int, length: int) -> bool:
    """Whether an argument is a tensor `(rows, length, …)`, or `(1, length, …)` for all rows."""
    return isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] in (1, rows) and value.shape[1] == length


def grown_rows(small: Tensor, large: Tensor, rows: int, what: str) -> Axis | None:
    """The axis of the rows of `small`, where `large` has one row more than its `rows`; None where they do not differ.

    Raises:
        ArgumentError: The rows have no dimension of their own.
    """
    if small.shape == large.shape:
        return None
    grown = [dim for dim in range(small.dim()) if small.dim() == large.dim() and small.shape[dim] != large.shape[dim]]
    each = large.shape[grown[0]] - small.shape[grown[0]] if len(grown) == 1 else 0
    if each < 1 or small.shape[grown[0]] != rows * each:
        raise ArgumentError(
            "module",
            expected="rows in one dimension of every tensor that a layer takes or gives",
            got=f"{what} of shape {tuple(small.shape)}, and {tuple(large.shape)} with one row more",
            remedy="Its rows cannot leave one by one; give PonderWrapper a stem and steps that keep them apart.",
        )
    return Axis(grown[0], each > 1)


def grown_lengths(small: Tensor, large: Tensor, length: int) -> tuple[int, ...]:
    """The dimensions of `small`, of `length`, that grew by one in `large`."""
    if small.dim() != large.dim():
        return ()
    sizes = zip(small.shape, large.shape, strict=True)
    return tuple(dim for dim, (before, after) in enumerate(sizes) if before == length and after == length + 1)


def split_rows(tensor: Tensor, axis: Axis, rows: int) -> Tensor:
    """`tensor` with its `rows` first, in a dimension of their own."""
    first = tensor if axis.dim == 0 else tensor.movedim(axis.dim, 0)
    return first.unflatten(0, (rows, first.shape[0] // rows)) if axis.folded else first


def merge_rows(tensor: Tensor, axis: Axis) -> Tensor:
    """Put the dimensions that `split_rows` took apart together again."""
    first = tensor.flatten(0, 1) if axis.folded else tensor
    return first if axis.dim == 0 else first.movedim(0, axis.dim)


def has_rows(value: Any, rows: int) -> bool:
    """Whether an argument is a tensor with so many rows."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows


def _changed(
    given: Arguments, applies: Callable[[Any], bool], change: Callable[[Tensor], Tensor]
) -> dict[str | int, Any]:
    return {key: change(value) if applies(value) else value for key, value in given.items()}
