"""Arithmetic on NumPy arrays and torch tensors alike, for code that also runs without torch.

Nothing here imports torch: an array can only be a tensor if torch was imported before.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

A = TypeVar("A")
Array: TypeAlias = Any
"""A tensor, or an array of NumPy."""
Host: TypeAlias = NDArray[Any]
"""An array of NumPy."""
__all__ = [
    "as_like",
    "at_least_float32",
    "copied",
    "namespace",
    "on_host",
    "select_rows",
    "sigmoid",
    "softmax",
    "weighted",
]


def namespace(x: Array) -> Any:
    """Return the library of an array: the module `torch` or `numpy`."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return torch
    return import_module("numpy")


def at_least_float32(x: A) -> A:
    """Convert any type but float32 and float64 to float32, the precision of all statistics."""
    array = cast(Any, x)
    if str(array.dtype)[-7:] in ("float32", "float64"):  # of either library
        return x
    if hasattr(array, "float"):
        return cast(A, array.float())
    return cast(A, array.astype("float32"))


def copied(x: A) -> A:
    """Return a copy that may be written into; gradients flow through the copy of a tensor."""
    array = cast(Any, x)
    return cast(A, array.clone() if hasattr(array, "clone") else array.copy())


def on_host(x: Array) -> Host:
    """Return an array or a tensor as a NumPy array; a tensor on the CPU shares its memory."""
    if isinstance(x, np.ndarray):
        return x
    array: Host = x.detach().cpu().numpy()
    return array


def as_like(x: Host, other: A) -> A:
    """Return a NumPy array in the library, and on the device, of another array."""
    if isinstance(other, np.ndarray):
        return cast(A, x)
    return cast(A, sys.modules["torch"].as_tensor(x, device=cast(Any, other).device))


def select_rows(tree: Any, index: Array) -> Any:
    """Return the rows `index` of every array in nested tuples, lists and dicts.

    Args:
        tree: Arrays of NumPy or tensors, batch first; other values are returned unchanged.
        index: Numbers of rows, of the same library.
    """
    if hasattr(tree, "index_select"):  # a tensor; faster than square brackets
        return tree.index_select(0, index)
    if isinstance(tree, np.ndarray):
        return tree[index]
    if isinstance(tree, Mapping):
        return {name: select_rows(value, index) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [select_rows(part, index) for part in tree]
        if hasattr(tree, "_make"):  # a named tuple
            return tree._make(parts)
        return type(tree)(parts)
    return tree


def softmax(x: A) -> A:
    """Return the softmax over the last dimension, in float32 or float64."""
    array = cast(Any, at_least_float32(x))
    if hasattr(array, "softmax"):
        return cast(A, array.softmax(-1))
    powers = namespace(x).exp(array - array.max(-1, keepdims=True))
    return cast(A, powers / powers.sum(-1, keepdims=True))


def sigmoid(x: A) -> A:
    """Return σ(x) without overflow; σ(NaN) is NaN."""
    xp = namespace(x)
    array = cast(Any, x)
    if xp.__name__ == "torch":
        return cast(A, array.sigmoid())
    return cast(A, xp.exp(xp.minimum(array, 0)) / (1 + xp.exp(-abs(array))))


def weighted(weight: A, value: A) -> A:
    """Return weight · value; 0, with zero gradient, at weight 0, even if the value is infinite."""
    xp = namespace(weight)
    inside = weight != 0
    # Both sides are guarded, since the gradient of the side that is not taken would be NaN.
    return cast(A, xp.where(inside, weight * xp.where(inside, value, 0.0), 0.0))
