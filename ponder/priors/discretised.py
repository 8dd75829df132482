"""Priors with a bump where one wants the exits: Poisson and Normal, cut to 1..N and renormalised."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ponder._utils.validation import check_real
from ponder.priors.base import MeanParameter, Prior, registry, steps

__all__ = ["Normal", "Poisson"]


@registry.register("poisson")
@dataclass(frozen=True)
class Poisson(Prior):
    r"""p(n) ∝ e^{−μ} μ^{n−1} / (n−1)!, the Poisson distribution shifted to start at step 1.

    Args:
        mean: Mean step before the cut to 1..N, > 1 (so μ = mean − 1).

    Example:
        >>> [round(p, 2) for p in priors.Poisson(2.0)(4).pmf.tolist()]
        [0.38, 0.38, 0.19, 0.06]
    """

    mean: float
    mean_parameter = MeanParameter("mean", low=1.0)

    def __post_init__(self) -> None:
        check_real("mean", self.mean, 1.0, open_low=True)

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """The mean stretched with the number of steps, from step 1 on, below which it cannot be."""
        return replace(self, mean=1.0 + (self.mean - 1.0) * num_steps / tuned_for)

    def log_pmf(self, num_steps: int) -> Tensor:
        """See `Prior.log_pmf`."""
        before = steps(num_steps) - 1
        rate = torch.tensor(self.mean - 1, dtype=torch.float64)
        return torch.log_softmax(torch.xlogy(before, rate) - torch.lgamma(before + 1), dim=-1)


@registry.register("normal")
@dataclass(frozen=True)
class Normal(Prior):
    r"""p(n) ∝ exp(−(n − mean)² / (2 std²)), the normal density read at the steps.

    Args:
        mean: Centre, in steps.
        std: Width, in steps, > 0.

    Example:
        >>> [round(p, 2) for p in priors.Normal(2.0, 1.0)(4).pmf.tolist()]
        [0.26, 0.43, 0.26, 0.06]
    """

    mean: float
    std: float
    mean_parameter = MeanParameter("mean")

    def __post_init__(self) -> None:
        check_real("mean", self.mean, -math.inf, remedy="Pass a step, 3.0 say.")
        check_real("std", self.std, open_low=True)

    def log_pmf(self, num_steps: int) -> Tensor:
        """See `Prior.log_pmf`."""
        n = steps(num_steps)  # the square multiplied out: mean² is the same for all, and would drown the steps
        exponent = n * (self.mean - n / 2)  # divided twice, since the square of a width may be no number
        return torch.log_softmax((exponent - exponent.max()) / self.std / self.std, dim=-1)

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """Centre and width stretched with the number of steps."""
        factor = num_steps / tuned_for
        return replace(self, mean=self.mean * factor, std=self.std * factor)
