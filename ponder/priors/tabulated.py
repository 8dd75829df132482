"""What priors have in common that are a table: one probability a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.errors import ArgumentError
from ponder.priors.base import Prior

__all__ = ["Tabulated"]


@dataclass(frozen=True)
class Tabulated(Prior):
    """Base of the priors that hold p(n) as numbers, and serve one number of steps."""

    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "probabilities", tuple(float(p) for p in self.probabilities))
        total = math.fsum(self.probabilities)
        if any(not p >= 0 for p in self.probabilities) or not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ArgumentError(
                "probabilities",
                expected="non-negative numbers that sum to 1",
                got=f"{self.probabilities} (sum {total:.6g})",
                remedy="Divide them by their sum.",
            )

    def log_pmf(self, num_steps: int) -> Tensor:
        """See `Prior.log_pmf`."""
        if num_steps != len(self.probabilities):
            raise ArgumentError(
                "prior",
                expected=f"a prior over the model's {num_steps} steps",
                got=f"{len(self.probabilities)} probabilities",
                remedy="Give one probability for each step.",
            )
        p = torch.tensor(self.probabilities, dtype=torch.float64)
        return (p / p.sum()).log()
