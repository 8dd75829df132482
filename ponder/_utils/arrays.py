"""Arithmetic on NumPy arrays and torch tensors alike, for code that also runs without torch.

Nothing here imports torch: an array can only be a tensor if torch was imported before.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

A = TypeVar("A")
Array: TypeAlias = Any
"""A tensor, or an array of NumPy."""
Host: TypeAlias = NDArray[Any]
"""An array of NumPy."""
Floats: TypeAlias = NDArray[Any]
Ints: TypeAlias = NDArray[Any]
Bools: TypeAlias = NDArray[Any]
"""Arrays of float64, of integers and of bool; NumPy's own functions widen narrower types."""
__all__ = [
    "Bools",
    "Floats",
    "Ints",
    "as_array",
    "as_like",
    "at_least_float32",
    "concatenate_rows",
    "copied",
    "namespace",
    "on_host",
    "select_rows",
    "sigmoid",
    "softmax",
    "weighted",
]


def namespace(x: Array) -> ModuleType:
    """Return the library of an array: the module `torch` or `numpy`."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return torch
    return np


def at_least_float32(x: A) -> A:
    """Convert any type but float32 and float64 to float32, the precision of all statistics."""
    array = cast(Any, x)
    # The text of a dtype of NumPy takes as long as the arithmetic on a few rows.
    if isinstance(array, np.ndarray | np.generic):
        is_precise = array.dtype.char in "fd"
    else:
        is_precise = str(array.dtype) in ("torch.float32", "torch.float64")
    if is_precise:
        return x
    if hasattr(array, "float"):
        return cast(A, array.float())
    return cast(A, array.astype("float32"))


def copied(x: A) -> A:
    """Return a copy that may be written into; gradients flow through the copy of a tensor."""
    array = cast(Any, x)
    if hasattr(array, "clone"):
        return cast(A, array.clone())
    return cast(A, array.copy())


def on_host(x: Array) -> Host:
    """Return an array or a tensor as a NumPy array; a tensor on the CPU shares its memory."""
    if isinstance(x, np.ndarray):
        return x
    array: Host = x.detach().cpu().numpy()
    return array


def as_array(values: Array) -> Floats:
    """Return an array or a tensor as an array of float64."""
    if namespace(values) is not np:
        values = values.detach().double().cpu()
    return np.asarray(values, dtype=np.float64)


def as_like(x: Host, other: A) -> A:
    """Return a NumPy array in the library, and on the device, of another array."""
    if isinstance(other, np.ndarray):
        return cast(A, x)
    device = cast(Any, other).device
    return cast(A, sys.modules["torch"].as_tensor(x, device=device))


def select_rows(tree: A, index: Array) -> A:
    """Return the rows `index` of every array in nested tuples, lists and dicts.

    Args:
        tree: Arrays of NumPy or tensors, batch first; other values are returned unchanged.
        index: Numbers of rows, of the same library.
    """
    selected: object = tree
    if hasattr(tree, "index_select"):  # a tensor; faster than square brackets
        selected = tree.index_select(0, index)
    elif isinstance(tree, np.ndarray):
        selected = tree[index]
    elif isinstance(tree, Mapping):
        selected = {name: select_rows(value, index) for name, value in tree.items()}
    elif isinstance(tree, tuple | list):
        parts = [select_rows(part, index) for part in tree]
        if hasattr(tree, "_make"):  # a named tuple
            selected = tree._make(parts)
        else:
            selected = type(tree)(parts)
    return cast(A, selected)


def concatenate_rows(trees: Sequence[A]) -> A:
    """Return the rows of several trees of one structure, in their order, as one tree.

    Args:
        trees: Arrays of NumPy or tensors in nested tuples, lists and dicts, batch first; of other
            values, which belong to all rows, the first is returned.
    """
    first = trees[0]
    joined: object = first
    if hasattr(first, "shape"):
        joined = namespace(first).concatenate(trees)
    elif isinstance(first, Mapping):
        joined = {
            name: concatenate_rows([cast(Any, tree)[name] for tree in trees]) for name in first
        }
    elif isinstance(first, tuple | list):
        parts = [concatenate_rows(parts) for parts in zip(*cast(Any, trees), strict=True)]
        if hasattr(first, "_make"):  # a named tuple
            joined = first._make(parts)
        else:
            joined = type(first)(parts)
    return cast(A, joined)


def softmax(x: A) -> A:
    """Return the softmax over the last dimension, in float32 or float64."""
    array = cast(Any, at_least_float32(x))
    if hasattr(array, "softmax"):
        return cast(A, array.softmax(-1))
    # No power overflows if the highest logit is 0.
    powers = namespace(x).exp(array - array.max(-1, keepdims=True))
    return cast(A, powers / powers.sum(-1, keepdims=True))


def sigmoid(x: A) -> A:
    """Return σ(x) without overflow; σ(NaN) is NaN."""
    xp = namespace(x)
    array = cast(Any, x)
    if xp.__name__ == "torch":
        return cast(A, array.sigmoid())
    # 1 / (1 + e⁻ˣ) for x > 0 and eˣ / (1 + eˣ) for x < 0: no exponent is positive.
    numerator = xp.exp(xp.minimum(array, 0))
    denominator = 1 + xp.exp(-abs(array))
    return cast(A, numerator / denominator)


def weighted(weight: A, value: A) -> A:
    """Return weight · value; 0, with zero gradient, at weight 0, even if the value is infinite."""
    xp = namespace(weight)
    counts = weight != 0
    # Both sides are guarded, since the gradient of the side that is not taken would be NaN.
    finite = xp.where(counts, value, 0.0)
    return cast(A, xp.where(counts, weight * finite, 0.0))
