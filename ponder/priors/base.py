"""What a prior is: hyper-parameters that give a halting distribution for any number of steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from ponder._utils.registry import Plugin, Registry
from ponder._utils.validation import check_int
from ponder.distributions import StepDistribution
from ponder.errors import ArgumentError, ArgumentTypeError

__all__ = ["MeanParameter", "Prior", "PriorWeights", "registry"]

registry: Registry[Prior] = Registry("prior", "ponder.priors")


@dataclass(frozen=True)
class MeanParameter:
    """The hyper-parameter of a family that moves its mean, monotonically, while the others stay (see `for_mean`).

    Args:
        name: The field of the prior.
        low: Lower end of the open interval of its values; −inf where there is none.
        high: Upper end; inf where there is none.

    Example:
        >>> priors.Geometric.mean_parameter
        MeanParameter(name='rate', low=0.0, high=1.0)
    """

    name: str
    low: float = -math.inf
    high: float = math.inf


class PriorWeights(nn.Module):
    """Base of what a prior learns with the model; `parameter_groups` puts it with the Lambda head.

    Example:
        >>> isinstance(priors.Learned(4).module, PriorWeights)
        True
    """


class Prior(Plugin, ABC):
    """Base of the priors p(n) over the halting step; leaves are frozen dataclasses.

    A leaf needs one method, `log_pmf`. Called with a number of steps, a prior gives a `StepDistribution`. Two
    attributes say more about a family: `mean_parameter`, for `for_mean`, and `module`, the weights of a prior that
    learns, which a `PonderWrapper` makes its own.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Falling(priors.Prior):
        ...     def log_pmf(self, num_steps):
        ...         return torch.arange(num_steps, 0, -1).double().log().log_softmax(0)
        >>> Falling()(3).pmf
        tensor([0.5000, 0.3333, 0.1667])
    """

    registry = registry
    mean_parameter: MeanParameter | None = None
    module: PriorWeights | None = None

    def __call__(
        self, num_steps: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> StepDistribution:
        """The prior over 1..`num_steps`, without batch dimensions.

        Raises:
            ArgumentError: `num_steps` is not a positive whole number, or not one this prior can serve.
        """
        check_int("num_steps", num_steps, remedy="Pass the number of steps.")
        dtype = torch.promote_types(dtype, torch.float32)  # rounded to half precision, the mass is no longer 1
        with torch.device("cpu"):  # numbers, even where a model is being built on the meta device
            log_pmf: Any = self.log_pmf(num_steps)
        if not isinstance(log_pmf, Tensor):
            raise ArgumentTypeError(
                f"{type(self).__name__}.log_pmf",
                expected=f"a tensor of {num_steps} log-probabilities",
                got=type(log_pmf).__name__,
                remedy="Return a float64 tensor, torch.log_softmax(…, 0), say.",
            )
        made = StepDistribution(log_pmf.to(dtype=dtype, device=device), validate_args=False)
        made._validate_args = __debug__  # the mass was looked at; what it is asked is, as by any distribution
        return made

    @abstractmethod
    def log_pmf(self, num_steps: int) -> Tensor:
        """Normalised log-probabilities of the steps 1..`num_steps`, `(steps,)`, float64.

        Outside the graph, but for a prior that learns.
        """

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """The prior for `num_steps` that means what this one means for `tuned_for`; itself by default."""
        return self


def check_mass(prior: Prior, made: StepDistribution, num_steps: int) -> None:
    """Refuse a prior that gives no distribution over the steps: one of another length, or of another sum than 1.

    Args:
        prior: The prior.
        made: What it gave for so many steps.
        num_steps: N.
    """
    log_pmf = made.log_pmf.detach()
    total = 1.0 if log_pmf.is_meta else float(log_pmf.exp().sum())  # without numbers while a model is being loaded
    if log_pmf.shape != (num_steps,) or not abs(total - 1.0) < 1e-3:
        raise ArgumentError(
            "prior",
            expected=f"a log_pmf of shape ({num_steps},) whose probabilities sum to 1",
            got=f"shape {tuple(log_pmf.shape)} and a sum of {total:.6g} from {prior!r}",
            remedy="Normalise it: log_pmf.log_softmax(0); ponder.testing.check_prior says more.",
        )


def steps(num_steps: int) -> Tensor:
    """The steps 1..`num_steps`, `(steps,)`, float64."""
    return torch.arange(1, num_steps + 1, dtype=torch.float64)
