"""Small numerical tools: the precision of statistics, lines through points, shares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

__all__ = ["at_least_float32", "exit_shares", "interpolate", "weighted"]

_FINE = (torch.float32, torch.float64)


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in float64 if it is, else in float32: statistics are computed so, whatever the model runs in."""
    return tensor if tensor.dtype in _FINE else tensor.float()


def weighted(weight: Tensor, value: Tensor) -> Tensor:
    """Weight · value, and 0 (with zero gradient) where the weight is 0 and value may be infinite; NaN stays NaN."""
    inside = weight != 0
    return torch.where(inside, weight * torch.where(inside, value, 0.0), 0.0)


def interpolate(costs: Sequence[float], scores: Sequence[float], at: Sequence[float]) -> list[float]:
    """Interpolate scores at given costs, on straight lines between neighbours.

    Equal costs count as one, with their mean score.

    For a score that is a mean over rows, a straight line is no guess: it is what one expects where a coin decides which
    of the two policies a row meets. Needs NumPy, which comes with matplotlib.

    Args:
        costs: Costs of the policies, in any order.
        scores: Their scores.
        at: Costs from the least to the greatest of `costs`.
    """
    import numpy as np

    together: dict[float, list[float]] = defaultdict(list)
    for cost, score in zip(costs, scores, strict=True):
        together[cost].append(score)
    known = sorted(together)
    return [float(score) for score in np.interp(at, known, [fmean(together[cost]) for cost in known])]


def exit_shares(exit_steps: Tensor, num_steps: int) -> list[float]:
    """The share of the rows that exit at each step, from exit steps `(batch,)`."""
    return (torch.bincount(exit_steps - 1, minlength=num_steps).double() / len(exit_steps)).tolist()
