"""Backward induction in plain numbers, so that a policy and its twin without PyTorch stop by one table."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

__all__ = ["stopping_table"]

_TIE = 1e-12


def stopping_table(
    rewards: Sequence[Sequence[float]], transitions: Sequence[Sequence[Sequence[float]]], price: float
) -> tuple[tuple[bool, ...], ...]:
    """Whether a row that stands in a bin at a step leaves, `(steps − 1, bins)`; equal values, rounding aside, leave.

    Args:
        rewards: What leaving earns, `(steps, bins)`.
        transitions: The chance of each bin one step later, `(steps − 1, bins, bins)`.
        price: What one more step costs.
    """
    values, stops = list(rewards[-1]), []
    for reward, transition in zip(rewards[-2::-1], transitions[::-1], strict=True):
        going_on = [fsum(p * v for p, v in zip(chances, values, strict=True)) - price for chances in transition]
        stops.append(tuple(now >= later - _TIE for now, later in zip(reward, going_on, strict=True)))
        values = [max(pair) for pair in zip(reward, going_on, strict=True)]
    return tuple(stops[::-1])
