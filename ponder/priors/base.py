"""What a prior is: hyper-parameters that give a halting distribution for any number of steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from ponder.distributions import StepDistribution
from ponder.errors import ArgumentError
from ponder.registry import Plugin, Registry

__all__ = ["Prior", "registry"]

registry: Registry[Prior] = Registry("prior", "ponder.priors")


class Prior(Plugin, ABC):
    """Base of the priors p(n) over the halting step; leaves are frozen dataclasses.

    A leaf needs one method, `log_pmf`. Called with a number of steps, a prior gives a `StepDistribution`.
    """

    registry = registry

    def __call__(
        self, num_steps: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> StepDistribution:
        """The prior over 1..`num_steps`, without batch dimensions.

        Raises:
            ArgumentError: `num_steps` is not a positive whole number, or not one this prior can serve.
        """
        if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
            raise ArgumentError(
                "num_steps",
                expected="a whole number ≥ 1",
                got=repr(num_steps),
                remedy="Pass the number of steps.",
            )
        dtype = torch.promote_types(dtype, torch.float32)  # rounded to half precision, the mass is no longer 1
        return StepDistribution(self.log_pmf(num_steps).to(dtype=dtype, device=device), validate_args=False)

    @abstractmethod
    def log_pmf(self, num_steps: int) -> Tensor:
        """Normalised log-probabilities of the steps 1..`num_steps`, `(steps,)`, float64."""

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """The prior for `num_steps` that means what this one means for `tuned_for`; itself by default."""
        return self


def steps(num_steps: int) -> Tensor:
    """The steps 1..`num_steps`, `(steps,)`, float64."""
    return torch.arange(1, num_steps + 1, dtype=torch.float64)


def check_positive(argument: str, value: float) -> None:
    """Refuse numbers that are not positive and finite."""
    if not 0 < value < float("inf"):
        raise ArgumentError(argument, expected="a positive number", got=value, remedy=f"Pass {argument} > 0.")
