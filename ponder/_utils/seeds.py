"""Random numbers as a function of (seed, row id): a row draws the same number in every batch."""

from __future__ import annotations

import numpy as np

from ponder._utils.arrays import Array, at_least_float32

__all__ = ["uniform"]

_GAMMA = 0x9E3779B97F4A7C15


def uniform(seed: int, row_ids: Array) -> Array:
    """Return numbers in [0, 1), `(rows,)` float32, each a function of the seed and its row id.

    A counter-based generator: the SplitMix64 finaliser (Steele, Lea & Flood 2014) is applied to the
    seed plus the golden gamma (0 alone is a fixed point), and then to the result plus the row id
    times the golden gamma.

    Args:
        seed: Any whole number.
        row_ids: Row ids, `(rows,)` int64, a tensor or an array.
    """
    [key] = _mix(np.array([_signed(seed + _GAMMA)]))
    # Products and sums of int64 wrap around, on every device.
    mixed = _mix(row_ids * _signed(_GAMMA) + int(key))
    bits = _shift_right(mixed, 40)  # the upper 24 bits, as many as float32 holds exactly
    return at_least_float32(bits) * 2.0**-24


def _mix(x: Array) -> Array:
    """Return the SplitMix64 finaliser of int64 numbers."""
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Array, bits: int) -> Array:
    """Shift int64 to the right with zeros; the operator `>>` copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """Return `number` modulo 2^64 as a signed 64-bit integer."""
    number &= (1 << 64) - 1
    if number >= 1 << 63:
        number -= 1 << 64
    return number
