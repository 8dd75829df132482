"""The uniform prior: every step equally likely."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.priors.base import Prior, registry

__all__ = ["Uniform"]


@registry.register("uniform")
@dataclass(frozen=True)
class Uniform(Prior):
    """The prior that gives every step the same probability, p(n) = 1 / N.

    Example:
        >>> Uniform()(4).pmf
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    def log_pmf(self, num_steps: int) -> Tensor:
        """See `Prior.log_pmf`."""
        return torch.full((num_steps,), -math.log(num_steps), dtype=torch.float64)
