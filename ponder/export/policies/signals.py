"""How sure one step is of a class, as one number a row: what `ponder.parts.signals` measures, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["at_least_float32", "confidence", "energy", "least", "log_softmax", "margin", "negative_entropy", "sigmoid"]

Array = NDArray[Any]


def confidence(logits: Array) -> Array:
    """The probability of the most probable class, `(…)`, of class logits `(…, classes)`."""
    surest: Array = np.exp(log_softmax(logits).max(-1))
    return surest


def margin(logits: Array) -> Array:
    """How far the two most probable classes are apart, in probability, `(…)`."""
    two = np.exp(np.sort(log_softmax(logits), axis=-1)[..., -2:])
    apart: Array = two[..., 1] - two[..., 0]
    return apart


def negative_entropy(logits: Array) -> Array:
    """The negative entropy of the class probabilities, Σ p log p, `(…)`."""
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    total: Array = np.where(p == 0, 0, p * log_p).sum(-1)
    return total


def energy(logits: Array) -> Array:
    """σ(log Σ_c exp z_c), `(…)` in [0, 1]; NaN where a logit is +∞."""
    logits = at_least_float32(logits)
    greatest = logits.max(-1)
    total = greatest + np.log(np.exp(logits - greatest[..., None]).sum(-1))
    return sigmoid(np.where(np.isneginf(greatest), greatest, total))


def log_softmax(logits: Array) -> Array:
    """The logarithms of the class probabilities, `(…, classes)`, in float32 at least."""
    logits = at_least_float32(logits)
    shifted = logits - logits.max(-1, keepdims=True)  # of infinity: NaN, which lets no row go
    log_p: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return log_p


def least(values: Array, mask: Array | None) -> Array:
    """The least value of each row, `(rows,)`: of `(rows,)`, or of those of `(rows, length)` that the mask counts."""
    if values.ndim == 1:
        return values
    of_row: Array = (values if mask is None else np.where(mask, values, np.inf)).min(1)
    return of_row.astype(values.dtype)


def sigmoid(values: Array) -> Array:
    """1 / (1 + exp(−x))."""
    found: Array = 1 / (1 + np.exp(-values))
    return found


def at_least_float32(array: Array) -> Array:
    """The array in float64 where it is so, and in float32 else."""
    wide: Array = array if array.dtype == np.float64 else array.astype(np.float32)
    return wide
