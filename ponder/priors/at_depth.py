"""A prior by its mean: the member of a family that expects exits at a given share of the depth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ponder._utils.validation import check_real, check_share
from ponder.priors.base import Prior, registry
from ponder.priors.mean import for_mean

__all__ = ["AtDepth"]


@registry.register("at-depth")
@dataclass(frozen=True)
class AtDepth(Prior):
    """The prior of `family` whose mean step is 1 + depth · (N − 1), whatever N is.

    Args:
        depth: The place of the mean step, in (0, 1): 0 is the first step, 1 the last.
        family: Registered name of a family that one parameter makes, for `for_mean`.

    Raises:
        ArgumentError: There is no such family, or no parameter of it is known to move its mean.
        ArgumentTypeError: The family has other parameters that have to be given, as the `std` of normal.

    Example:
        >>> round(AtDepth(0.5)(13).mean.item(), 3)
        7.0
    """

    depth: float
    family: str = "geometric"

    def __post_init__(self) -> None:
        check_share("depth", self.depth)
        check_real("depth", self.depth, 1e-12, 1.0 - 1e-12)  # else the mean is step 1, or N, which no member has
        for_mean(self.family, 1.5, num_steps=2)  # refuses a family that no one parameter makes

    def log_pmf(self, num_steps: int) -> Tensor:
        """See `Prior.log_pmf`."""
        if num_steps == 1:
            return torch.zeros(1, dtype=torch.float64)
        return _found(self.family, self.depth, num_steps).log_pmf(num_steps)


@lru_cache(maxsize=256)
def _found(family: str, depth: float, num_steps: int) -> Prior:
    """The member of the family, which is searched for once, and not at every batch."""
    return for_mean(family, 1.0 + depth * (num_steps - 1), num_steps)
