"""Arithmetic on NumPy arrays and torch tensors alike, for what also runs where torch is not installed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

A = TypeVar("A")
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


def namespace(x: Any) -> Any:
    """Return the library of an array: the module `torch` or `numpy`."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(x, torch.Tensor) else import_module("numpy")


def at_least_float32(x: A) -> A:
    """Convert to float32 what is neither float32 nor float64: the precision of all statistics."""
    given = cast(Any, x)
    if str(given.dtype)[-7:] in ("float32", "float64"):  # of either library
        return x
    return cast(A, given.float() if hasattr(given, "float") else given.astype("float32"))


def copied(x: A) -> A:
    """Return a copy that may be written into; of a tensor, one through which gradients flow."""
    given = cast(Any, x)
    return cast(A, given.clone() if hasattr(given, "clone") else given.copy())


def on_host(x: Any) -> NDArray[Any]:
    """Return an array or a tensor as an array of NumPy; a tensor on the CPU shares its memory."""
    return x if isinstance(x, np.ndarray) else x.detach().cpu().numpy()


def as_like(x: NDArray[Any], other: A) -> A:
    """Return an array of NumPy as one of the library, and on the device, of another."""
    if isinstance(other, np.ndarray):
        return cast(A, x)
    return cast(A, sys.modules["torch"].as_tensor(x, device=cast(Any, other).device))


def select_rows(tree: Any, index: Any) -> Any:
    """Return the rows `index` of every array of nested tuples, lists and dicts; other values pass unchanged.

    Args:
        tree: Arrays of NumPy or tensors, batch first.
        index: Numbers of rows, of the same library.
    """
    if hasattr(tree, "index_select"):  # a tensor, faster than by square brackets
        return tree.index_select(0, index)
    if isinstance(tree, np.ndarray):
        return tree[index]
    if isinstance(tree, Mapping):
        return {name: select_rows(value, index) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [select_rows(part, index) for part in tree]
        return type(tree)._make(parts) if hasattr(tree, "_make") else type(tree)(parts)
    return tree


def softmax(x: A) -> A:
    """Return the softmax over the last dimension, in float32 or float64."""
    given = cast(Any, at_least_float32(x))
    if hasattr(given, "softmax"):
        return cast(A, given.softmax(-1))
    powers = namespace(x).exp(given - given.max(-1, keepdims=True))
    return cast(A, powers / powers.sum(-1, keepdims=True))


def sigmoid(x: A) -> A:
    """Return σ(x), without overflow; NaN stays."""
    xp, given = namespace(x), cast(Any, x)
    if xp.__name__ == "torch":
        return cast(A, given.sigmoid())
    return cast(A, xp.exp(xp.minimum(given, 0)) / (1 + xp.exp(-abs(given))))


def weighted(weight: A, value: A) -> A:
    """Return weight · value, and 0 (with zero gradient) where the weight is 0 and the value may be infinite."""
    xp, inside = namespace(weight), weight != 0
    return cast(A, xp.where(inside, weight * xp.where(inside, value, 0.0), 0.0))
