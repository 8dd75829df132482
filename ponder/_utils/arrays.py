"""Arithmetic on NumPy arrays and torch tensors alike, for what also runs where torch is not installed."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, TypeVar, cast

A = TypeVar("A")
__all__ = [
    "at_least_float32",
    "copied",
    "log_sigmoid",
    "namespace",
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


def log_sigmoid(x: A) -> A:
    """Return log σ(x), without overflow."""
    xp, given = namespace(x), cast(Any, x)
    return cast(
        A,
        xp.nn.functional.logsigmoid(given) if xp.__name__ == "torch" else -xp.logaddexp(0, -given),
    )


def weighted(weight: A, value: A) -> A:
    """Return weight · value, and 0 (with zero gradient) where the weight is 0 and the value may be infinite."""
    xp, inside = namespace(weight), weight != 0
    return cast(A, xp.where(inside, weight * xp.where(inside, value, 0.0), 0.0))
