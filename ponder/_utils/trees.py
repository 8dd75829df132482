"""Nested states whose tensors are batch-first: read them, check them, and take some of their rows.

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
    """Mark of a context value that belongs to the whole batch: every step gets it as it is.

    Args:
        value: The value, for example a relative position bias, `(1, heads, length, length)`.

    Example:
        >>> def step(hidden, scale):
        ...     return hidden * scale
        >>> model = PonderWrapper(step, num_steps=2, head=nn.Linear(4, 2), policy=policies.LastStep())
        >>> model.eval()(torch.randn(5, 4), scale=ponder.Shared(torch.ones(4))).outputs.shape
        torch.Size([5, 2])
    """

    value: Any


def map_tensors(fn: Callable[[Any], Any], tree: Tree, kind: type = Tensor) -> Tree:
    """Apply `fn` to every tensor of `tree` (or to the leaves of another kind) and keep the structure."""
    if type(tree) is kind:  # the usual case, without the overhead of a tree
        return fn(tree)
    return pytree.tree_map_only(kind, fn, tree)


def tensors(tree: Tree, path: str = "") -> list[tuple[str, Tensor]]:
    """Return every tensor of `tree` with the path that leads to it."""
    leaves, _ = pytree.tree_flatten_with_path(tree)
    return [
        (path + pytree.keystr(place), leaf) for place, leaf in leaves if isinstance(leaf, Tensor)
    ]


def first_tensor(tree: Tree) -> Tensor:
    """Return the first tensor of `tree`, which has one."""
    return tree if isinstance(tree, Tensor) else tensors(tree)[0][1]


def take_rows(tree: Tree, index: Tensor) -> Tree:
    """Take the rows `index`, `(rows,)` long, of every tensor of `tree`."""
    if isinstance(tree, Tensor):  # the usual cases, without the overhead of a tree
        return tree.index_select(0, index)
    if isinstance(tree, tuple):
        parts = [take_rows(part, index) for part in tree]
        return tree._make(parts) if hasattr(tree, "_make") else tuple(parts)
    return map_tensors(methodcaller("index_select", 0, index), tree) if tree else tree


def unwrap(context: Mapping[str, Any]) -> dict[str, Any]:
    """Return `context` as a step sees it, `Shared` values without their mark."""
    given: dict[str, Any] = {}
    for name, value in context.items():
        if isinstance(value, Tensor | Shared):  # the usual cases, without the overhead of a tree
            given[name] = value.value if isinstance(value, Shared) else value
        else:
            given[name] = map_tensors(attrgetter("value"), value, Shared)
    return given


def check_rows(name: str, tree: Tree, batch: int | None = None) -> int:
    """Check that all tensors of `tree` are batch-first and of one batch size, and return that size.

    Args:
        name: Name of the tree, for the message.
        tree: The tree.
        batch: The size they must have; None takes that of the first tensor.

    Raises:
        ArgumentTypeError: `tree` holds no tensor although `batch` is None.
        ArgumentError: A tensor has another first dimension.
    """
    if isinstance(tree, Tensor) and tree.dim() and batch in (None, tree.shape[0]):  # the usual case
        return tree.shape[0]
    for path, tensor in tensors(tree, name):
        size = tensor.shape[0] if tensor.dim() else None
        batch = size if batch is None else batch
        if size is None or size != batch:
            expected = f"a tensor with the batch first, ({'batch' if batch is None else batch}, …)"
            remedy = "Put one row per example; a value that belongs to the whole batch goes into ponder.Shared(…)."
            raise ArgumentError(
                path, expected=expected, got=f"shape {tuple(tensor.shape)}", remedy=remedy
            )
    if batch is None:
        expected = "a tensor, or a tuple or dict of tensors"
        raise ArgumentTypeError(
            name, expected=expected, got=type(tree).__name__, remedy="Pass tensors."
        )
    return batch


def alike(one: Tree, other: Tree, tolerance: float = 0.0) -> bool:
    """Return whether two trees have one structure and equal leaves; NaN equals NaN.

    Args:
        one: A tree.
        other: Another.
        tolerance: Absolute and relative distance that floating-point numbers may have.
    """
    leaves, structure = pytree.tree_flatten(one)
    others, other_structure = pytree.tree_flatten(other)
    return structure == other_structure and all(
        _alike_leaves(first, second, tolerance)
        for first, second in zip(leaves, others, strict=True)
    )


def _alike_leaves(one: Any, other: Any, tolerance: float) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
