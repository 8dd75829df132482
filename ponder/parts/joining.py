"""Joining rows: one batch made of rows of several, each row copied once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ponder._utils.trees import Shared, Tree, alike
from ponder.errors import ArgumentError
from ponder.parts.padding import Along, Lengths, with_lengths

__all__ = ["Lengths", "begun", "join_rows", "with_lengths"]

_NO_LENGTHS = with_lengths(None)


def begun(state: Tree) -> object:
    """Which parts of a policy's state are there at all: rows of which this differs are asked apart.

    A policy tells its first call from the others where its whole state is None. Inside a mapping, None is a value that
    is not there yet, and becomes zeros beside others.

    Example:
        >>> begun(None), begun((None, torch.ones(2))), begun({"seen": None})
        (False, (False, True), True)
    """
    return tuple(map(begun, state)) if isinstance(state, tuple) else state is not None


def join_rows(
    trees: Sequence[Tree],
    sizes: Sequence[int],
    keep: Sequence[Tensor | None] | None = None,
    *,
    lengths: Lengths = _NO_LENGTHS,
    length: int = 0,
    absent: Literal["refused", "zeros"] = "refused",
    path: str = "rows",
) -> Tree:
    """One tree with the rows of `trees`, in their order.

    Leaves that belong to the whole batch (numbers, `Shared` values) must be the same in all trees.

    Args:
        trees: Trees of one structure, batch first.
        sizes: How many rows each gives.
        keep: The positions of these rows, long tensors beside the tree's; None takes all.
        lengths: The dimensions of a tensor that differ from tree to tree, if any: they become `length`. A function of
            the tensor, or such functions in a tuple or dict like the trees.
        length: The length of the joined sequences; what is longer is cropped, what is shorter padded on the right.
        absent: What a None is that meets a tensor: in the state of a policy, a value that is not there yet, which is
            ``"zeros"``; elsewhere it says something of its own (a mask that is None hides nothing), and is refused.
        path: What the trees are, for messages.

    Raises:
        ArgumentError: The trees do not fit one another; says where.

    Example:
        >>> join_rows([{"seen": torch.tensor([7, 8])}, {"seen": None}], sizes=[2, 1], absent="zeros")["seen"]
        tensor([7, 8, 0])
    """
    keep = [None] * len(trees) if keep is None else keep
    first = None
    for tree in trees:
        if tree is not None:
            first = tree
            break
    if len(trees) == 1 and keep[0] is None and not length:
        return first
    if absent == "refused" and first is not None:
        for tree in trees:
            if tree is None:
                raise _misfit(path, f"{type(first).__name__} in all rows", None)
    if isinstance(first, Tensor):
        return _join_tensors(_all_of(trees, Tensor, path), sizes, keep, lengths(first), length, path)
    if isinstance(first, Shared):
        return _join_shared(_all_of(trees, Shared, path), lengths, length, path)
    if isinstance(first, Mapping | list | tuple):
        return _join_nodes(first, _all_of(trees, type(first), path), sizes, keep, lengths, length, absent, path)
    for tree in trees:
        if tree is not None and tree != first:
            raise _misfit(path, f"the same value in all rows of a batch, {first!r}", tree)
    return first


def _join_nodes(
    first: Any,
    trees: Sequence[Any],
    sizes: Sequence[int],
    keep: Sequence[Tensor | None],
    lengths: Lengths,
    length: int,
    absent: Literal["refused", "zeros"],
    path: str,
) -> Tree:
    """Join mappings, lists, tuples and named tuples, child by child; a tree that is None has no children yet."""
    keys = list(first) if isinstance(first, Mapping) else list(range(len(first)))
    for tree in trees:
        if tree is not None and (list(tree) if isinstance(tree, Mapping) else list(range(len(tree)))) != keys:
            raise _misfit(path, f"the same parts in all rows, {keys}", tree)
    children = [
        join_rows(
            [None if tree is None else tree[key] for tree in trees],
            sizes,
            keep,
            lengths=lengths if callable(lengths) else lengths[key],
            length=length,
            absent=absent,
            path=f"{path}[{key!r}]",
        )
        for key in keys
    ]
    if isinstance(first, Mapping):
        return type(first)(zip(keys, children, strict=True))  # type: ignore[call-arg]
    return type(first)(*children) if hasattr(first, "_fields") else type(first)(children)


def _join_tensors(
    tensors: Sequence[Tensor | None],
    sizes: Sequence[int],
    keep: Sequence[Tensor | None],
    along: Along | None,
    length: int,
    path: str,
) -> Tensor:
    present = [tensor for tensor in tensors if tensor is not None]
    first, dims = present[0], along.dims if along is not None else ()
    own = [first.shape[dim] for dim in dims]
    if len(tensors) == 1 and keep[0] is None and (not own or min(own) >= length):
        return first if along is None else along.narrow(first, length)
    shape, dtype, short = list(first.shape[1:]), first.dtype, False
    for dim in dims:
        shape[dim - 1 if dim > 0 else dim] = length
    for tensor in present:
        dtype = dtype if tensor.dtype == dtype else torch.promote_types(dtype, tensor.dtype)
        for dim in dims:
            short = short or tensor.shape[dim] < length
    joined = first.new_empty((sum(sizes), *shape), dtype=dtype)
    if short and along is not None:
        joined.fill_(along.value(joined))
    at = 0
    for own_rows, size, rows in zip(tensors, sizes, keep, strict=True):
        target, at = joined[at : at + size], at + size
        if own_rows is None:
            target.zero_()
            continue
        tensor = own_rows
        for dim in dims:
            if tensor.shape[dim] > length:
                tensor = tensor.narrow(dim, 0, length)
            elif tensor.shape[dim] < length:
                target = target.narrow(dim, 0, tensor.shape[dim])
        if tensor.shape[1:] != target.shape[1:]:
            raise _misfit(path, f"rows of one shape, (…, {tuple(target.shape[1:])})", tuple(tensor.shape))
        if rows is None or tensor.dtype != dtype:
            target.copy_(tensor if rows is None else tensor.index_select(0, rows))
        else:
            torch.index_select(tensor, 0, rows, out=target)
    return joined


def _join_shared(values: Sequence[Shared], lengths: Lengths, length: int, path: str) -> Shared:
    first = values[0].value
    along = lengths(first) if isinstance(first, Tensor) else None
    if along is not None:
        longest = max((shared.value for shared in values), key=lambda tensor: tensor.shape[along.dims[-1]])
        return Shared(along.narrow(longest, length))
    for shared in values[1:]:
        if shared.value is not first and not alike(shared.value, first):
            raise _misfit(path, "one Shared value for all rows of a batch", "two that differ")
    return values[0]


def _all_of(trees: Sequence[Tree], kind: type, path: str) -> Sequence[Any]:
    for tree in trees:
        if tree is not None and not isinstance(tree, kind):
            raise _misfit(path, f"{kind.__name__} in all rows", type(tree).__name__)
    return trees


def _misfit(path: str, expected: str, got: object) -> ArgumentError:
    return ArgumentError(
        path,
        expected=expected,
        got=got,
        remedy="Rows that are to share a batch must have states of one kind; declare lengths with ponder.Padding.",
    )
