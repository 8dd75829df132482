"""The geometric prior of PonderNet: a constant hazard at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder._utils.validation import check_share
from ponder.distributions import StepDistribution
from ponder.priors.base import MeanParameter, Prior, registry

__all__ = ["Geometric"]


@registry.register("geometric")
@dataclass(frozen=True)
class Geometric(Prior):
    r"""The prior of a constant hazard r: p(n) = r (1 − r)^{n−1}, and the last step has all the mass that is left.

    Banino et al. 2021, Section 2.3; PALBERT uses r = 0.1 for 12 steps (Table 3).

    Args:
        rate: The hazard r of every step, in (0, 1).

    Example:
        >>> Geometric(0.5)(3).pmf
        tensor([0.5000, 0.2500, 0.2500])
    """

    rate: float
    mean_parameter = MeanParameter("rate", 0.0, 1.0)

    def __post_init__(self) -> None:
        check_share("rate", self.rate, remedy="Pass for example rate=0.1.")

    def log_pmf(self, num_steps: int) -> Tensor:
        """See `Prior.log_pmf`."""
        logit = math.log(self.rate) - math.log1p(-self.rate)
        return StepDistribution.from_hazard_logits(torch.full((num_steps,), logit, dtype=torch.float64)).log_pmf

    def rescaled(self, tuned_for: int, num_steps: int) -> Geometric:
        """The rate at which as much goes on past the last step: 1 − (1 − r)^(tuned_for / num_steps)."""
        rate = -math.expm1(math.log1p(-self.rate) * tuned_for / num_steps)
        return Geometric(min(rate, math.nextafter(1.0, 0.0)))
