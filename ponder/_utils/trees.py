"""Nested states whose tensors are batch-first: reading, checking and comparing them, and taking some of their rows.

A *tree* is a tensor, or a tuple, list, named tuple or dict of trees; leaves that are not tensors (numbers,
None, `Shared` values) belong to the whole batch and pass unchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ponder.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "Shared",
    "Tree",
    "alike",
    "check_given",
    "check_rows",
    "distance",
    "first_tensor",
    "leaves",
    "map_leaves",
    "map_tensors",
    "take_rows",
    "tensors",
    "unwrap",
]

Tree = Any


@dataclass(frozen=True, eq=False)
class Shared:
    """Marks a context value that belongs to the whole batch: it is passed to every step as it is.

    Args:
        value: The value, for example a relative position bias, `(1, heads, length, length)`.

    Example:
        >>> def step(hidden, scale):
        ...     return hidden * scale
        >>> model = PonderWrapper(step, num_steps=2, head=nn.Linear(4, 2))
        >>> model.eval()(torch.randn(5, 4), scale=Shared(torch.ones(4))).outputs.shape
        torch.Size([5, 2])
    """

    value: Any


def map_tensors(fn: Callable[[Any], Any], tree: Tree, kind: type = Tensor) -> Tree:
    """Apply `fn` to every per-example tensor of `tree` (or to leaves of another kind) and keep the structure."""
    if isinstance(tree, Tensor) or not isinstance(tree, list | tuple | Mapping):
        return fn(tree) if isinstance(tree, kind) else tree
    made: Any = type(tree)
    if isinstance(tree, Mapping):
        values = {key: map_tensors(fn, value, kind) for key, value in tree.items()}
        if isinstance(tree, defaultdict):  # whose class takes what makes its defaults first
            return defaultdict(tree.default_factory, values)
        return made(**values) if is_dataclass(tree) else made(values)
    parts = [map_tensors(fn, value, kind) for value in tree]
    return made(*parts) if hasattr(tree, "_fields") else made(parts)


def map_leaves(change: Callable[[Any], Any], tree: Tree) -> Tree:
    """`tree` with `change` of its leaves, tensors or not."""
    return map_tensors(change, tree, object)


def leaves(tree: Tree) -> Iterator[Any]:
    """The leaves of `tree`, in the order of `map_tensors`."""
    if isinstance(tree, Mapping):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        yield tree
        return
    for value in tree:
        yield from leaves(value)


def tensors(tree: Tree, path: str = "") -> list[tuple[str, Tensor]]:
    """Every per-example tensor of `tree` with the path that leads to it."""
    if isinstance(tree, Tensor):
        return [(path, tree)]
    if not isinstance(tree, Mapping | list | tuple):
        return []
    found: list[tuple[str, Tensor]] = []
    for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        place = f"{path}[{key!r}]"
        found += [(place, value)] if isinstance(value, Tensor) else tensors(value, place)
    return found


def first_tensor(tree: Tree) -> Tensor:
    """The first per-example tensor of `tree`, which has one."""
    return tree if isinstance(tree, Tensor) else tensors(tree)[0][1]


def take_rows(tree: Tree, index: Tensor) -> Tree:
    """The rows `index` (a long tensor, `(rows,)`) of every per-example tensor of `tree`."""
    if isinstance(tree, Tensor):  # nearly always
        return tree.index_select(0, index)
    return None if tree is None else map_tensors(partial(torch.index_select, dim=0, index=index), tree)


def unwrap(context: Mapping[str, Any]) -> dict[str, Any]:
    """`context` as a step sees it: `Shared` values, wherever they stand, without their mark."""
    return {
        name: value if isinstance(value, Tensor) else map_tensors(attrgetter("value"), value, Shared)
        for name, value in context.items()
    }


def check_rows(name: str, tree: Tree, batch: int | None = None) -> int:
    """Check that all tensors of `tree` are batch-first and agree on the batch size, and return that size.

    Args:
        name: What the tree is, for the message.
        tree: The tree.
        batch: The size they must have; None takes the size of the first tensor.

    Raises:
        ArgumentTypeError: `tree` holds no tensor although `batch` is None.
        ArgumentError: A tensor has another first dimension.
    """
    if isinstance(tree, Tensor) and tree.dim() and batch in (None, tree.shape[0]):  # nearly always
        return tree.shape[0]
    for path, tensor in tensors(tree, name):
        size = tensor.shape[0] if tensor.dim() else None
        if batch is None:
            batch = size
        if size is None or size != batch:
            raise ArgumentError(
                path,
                expected=f"a tensor with the batch first, ({'batch' if batch is None else batch}, …)",
                got=f"shape {tuple(tensor.shape)}",
                remedy="Put one row per example; a value that belongs to the whole batch goes into ponder.Shared(…).",
            )
    if batch is None:
        raise ArgumentTypeError(
            name,
            expected="a tensor, or a tuple or dict of tensors",
            got=type(tree).__name__,
            remedy="Pass tensors.",
        )
    return batch


def check_given(argument: str, given: Mapping[str, Any], batch: int | None = None) -> int:
    """The number of rows of a dict of tensors that a caller gives beside the inputs; `batch` as for `check_rows`.

    Raises:
        ArgumentTypeError: It is something else: lists and arrays would keep all their rows when some leave.
        ArgumentError: What `check_rows` refuses.
    """
    values = list(given.values()) if isinstance(given, Mapping) else None
    if values is None or not all(isinstance(value, Tensor) for value in values):
        kinds = type(given).__name__ if values is None else [type(value).__name__ for value in values]
        raise ArgumentTypeError(
            argument,
            expected="a dict of tensors, each with a row for each example",
            got=kinds,
            remedy=f"Pass {argument}={{'budget': torch.as_tensor(budgets)}}, say.",
        )
    return check_rows(argument, given, batch)


def alike(first: Tree, second: Tree, tolerance: float = 0.0) -> bool:
    """Whether two trees have one structure and equal leaves; NaN equals NaN, and modules are equal by their weights.

    Args:
        first: A tree.
        second: Another.
        tolerance: How far floating-point numbers may be apart, absolutely and relatively.
    """
    leaves, structure = pytree.tree_flatten(first)
    others, other_structure = pytree.tree_flatten(second)
    pairs = zip(leaves, others, strict=False)
    return bool(structure == other_structure) and all(_alike_leaves(one, other, tolerance) for one, other in pairs)


def distance(first: Tensor, second: Tensor) -> str:
    """By what two tensors differ, in words: their shapes, or how far their values are apart at most."""
    if first.shape != second.shape:
        return f"their shapes, {tuple(first.shape)} and {tuple(second.shape)}"
    differ = first != second  # infinities that are the same have no distance
    apart = (first.detach()[differ].double() - second.detach()[differ].double()).abs()
    return f"{float(apart.max()) if apart.numel() else 0.0:.3g}"


def _alike_leaves(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
            return False
        if not one.is_floating_point():
            return torch.equal(one, other)
        return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
    if isinstance(one, nn.Module) and isinstance(other, nn.Module):
        return type(one) is type(other) and alike(dict(one.state_dict()), dict(other.state_dict()), tolerance)
    return type(one) is type(other) and bool(one == other)
