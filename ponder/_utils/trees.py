"""Nested states whose tensors are batch-first: read them, check them, and select rows.

A *tree* is a tensor, or a tuple, list, named tuple or dict of trees (any pytree of PyTorch); leaves
that are not tensors (numbers, None, `Shared` values) belong to the whole batch and pass unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter, methodcaller
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ponder.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "Shared",
    "Tree",
    "alike",
    "check_rows",
    "first_tensor",
    "map_tensors",
    "take_rows",
    "tensors",
    "unwrap",
]

Tree = Any


@dataclass(frozen=True, eq=False)
class Shared:
    """Mark of a context value of the whole batch, which is passed to every step unchanged.

    Args:
        value: The value, for example a relative position bias, `(1, heads, length, length)`.

    Example:
        >>> def step(hidden, scale):
        ...     return hidden * scale
        >>> model = PonderWrapper(step, 2, head=nn.Linear(4, 2), policy=policies.LastStep())
        >>> model.eval()(torch.randn(5, 4), scale=ponder.Shared(torch.ones(4))).outputs.shape
        torch.Size([5, 2])
    """

    value: Any


def map_tensors(fn: Callable[[Any], Any], tree: Tree, kind: type = Tensor) -> Tree:
    """Apply `fn` to every tensor of `tree`, or leaf of another kind, and keep the structure."""
    if type(tree) is kind:  # the usual case, without the overhead of a pytree
        return fn(tree)
    return pytree.tree_map_only(kind, fn, tree)


def tensors(tree: Tree, path: str = "") -> list[tuple[str, Tensor]]:
    """Return every tensor of `tree` with the path that leads to it."""
    leaves, _ = pytree.tree_flatten_with_path(tree)
    return [
        (path + pytree.keystr(place), leaf) for place, leaf in leaves if isinstance(leaf, Tensor)
    ]


def first_tensor(tree: Tree) -> Tensor:
    """Return the first tensor of `tree`, which must have one."""
    if isinstance(tree, Tensor):
        return tree
    _, tensor = tensors(tree)[0]
    return tensor


def take_rows(tree: Tree, index: Tensor) -> Tree:
    """Take the rows `index`, `(rows,)` long, of every tensor of `tree`."""
    # Tensors and tuples are the usual cases, and are read without the overhead of a pytree.
    if isinstance(tree, Tensor):
        return tree.index_select(0, index)
    if isinstance(tree, tuple):
        parts = [take_rows(part, index) for part in tree]
        if hasattr(tree, "_make"):  # a named tuple
            return tree._make(parts)
        return tuple(parts)
    if not tree:  # None, or an empty dict
        return tree
    return map_tensors(methodcaller("index_select", 0, index), tree)


def unwrap(context: Mapping[str, Any]) -> dict[str, Any]:
    """Return `context` as it is passed to a step: `Shared` values without their mark."""
    unwrapped: dict[str, Any] = {}
    for name, value in context.items():
        if isinstance(value, Shared):
            unwrapped[name] = value.value
        elif isinstance(value, Tensor):  # the usual case, without the overhead of a pytree
            unwrapped[name] = value
        else:
            unwrapped[name] = map_tensors(attrgetter("value"), value, Shared)
    return unwrapped


def check_rows(name: str, tree: Tree, batch: int | None = None) -> int:
    """Check that all tensors of `tree` are batch-first and of one batch size, and return that size.

    Args:
        name: Name of the tree, for the message.
        tree: The tree.
        batch: The required size; by default that of the first tensor.

    Raises:
        ArgumentTypeError: `tree` holds no tensor, and no `batch` was passed.
        ArgumentError: A tensor has another first dimension.
    """
    if isinstance(tree, Tensor) and tree.dim() and batch in (None, tree.shape[0]):  # the usual case
        return tree.shape[0]
    for path, tensor in tensors(tree, name):
        if batch is None and tensor.dim():
            batch = tensor.shape[0]
        if not tensor.dim() or tensor.shape[0] != batch:
            first = "batch" if batch is None else batch
            raise ArgumentError(
                path,
                expected=f"a tensor with the batch first, ({first}, …)",
                got=f"shape {tuple(tensor.shape)}",
                remedy="Put one row per example; "
                "a value that belongs to the whole batch goes into ponder.Shared(…).",
            )
    if batch is None:
        raise ArgumentTypeError(
            name,
            expected="a tensor, or a tuple or dict of tensors",
            got=type(tree).__name__,
            remedy="Pass tensors.",
        )
    return batch


def alike(one: Tree, other: Tree, tolerance: float = 0.0) -> bool:
    """Return whether two trees have one structure and equal leaves; NaN equals NaN.

    Args:
        one: A tree.
        other: Another tree.
        tolerance: Absolute and relative tolerance of floating-point numbers.
    """
    leaves, structure = pytree.tree_flatten(one)
    other_leaves, other_structure = pytree.tree_flatten(other)
    if structure != other_structure:
        return False
    pairs = zip(leaves, other_leaves, strict=True)
    return all(_alike_leaves(first, second, tolerance) for first, second in pairs)


def _alike_leaves(one: object, other: object, tolerance: float) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
