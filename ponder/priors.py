"""Priors over the halting step: hyper-parameters, from which p(n) follows for any N."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from ponder._utils.checks import check_int, check_real, check_share
from ponder._utils.registry import Plugin, Registry
from ponder.distributions import StepDistribution
from ponder.errors import ArgumentError

__all__ = [
    "Geometric",
    "Learned",
    "Prior",
    "Tabulated",
    "Uniform",
    "from_dict",
    "get",
    "names",
    "register",
]

registry: Registry[Prior] = Registry("prior", "ponder.priors")


class Prior(Plugin, ABC):
    """Base of the priors p(n) over the halting step; leaves are frozen dataclasses.

    A leaf needs one method, `log_pmf`. Called with a number of steps, a prior gives a
    `StepDistribution`. A prior that learns has its weights in `module`, which a `PonderWrapper`
    makes its own.

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
    module: nn.Module | None = None

    def __call__(
        self,
        num_steps: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> StepDistribution:
        """Return the prior over 1..`num_steps`, without batch dimensions."""
        # Rounded to half precision, the mass would not be 1.
        dtype = torch.promote_types(dtype, torch.float32)
        # On the CPU, since a model may be under construction on the meta device.
        with torch.device("cpu"):
            log_pmf = self.log_pmf(num_steps)
        log_pmf = log_pmf.to(dtype=dtype, device=device)
        # On other devices, a check would synchronise.
        return StepDistribution(log_pmf, validate_args=log_pmf.device.type == "cpu")

    @abstractmethod
    def log_pmf(self, num_steps: int) -> Tensor:
        """Return normalised log-probabilities of the steps 1..`num_steps`, `(steps,)`, float64.

        Outside the graph, but for a prior that learns.
        """

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """Return the prior for `num_steps` that corresponds to this one for `tuned_for` steps.

        By default the prior itself.
        """
        return self


@registry.register("geometric")
@dataclass(frozen=True)
class Geometric(Prior):
    r"""The prior of a constant hazard r: p(n) = r (1 − r)^{n−1}; the last step takes the rest.

    Banino et al. 2021, Section 2.3; PALBERT uses r = 0.1 for 12 steps (Table 3).

    Args:
        rate: The hazard r of every step, in (0, 1).

    Example:
        >>> priors.Geometric(0.5)(3).pmf
        tensor([0.5000, 0.2500, 0.2500])
    """

    rate: float

    def __post_init__(self) -> None:
        check_share("rate", self.rate)

    @classmethod
    def for_mean(cls, mean: float, num_steps: int) -> Self:
        """Return the prior whose mean over 1..`num_steps` is `mean`, found by bisection.

        Args:
            mean: The expected step, between 1 and `num_steps`, ends excluded.
            num_steps: N.

        Example:
            >>> round(priors.Geometric.for_mean(4.0, num_steps=12)(12).mean.item(), 3)
            4.0
        """
        check_real("mean", mean, 1.0, float(num_steps), open_low=True, open_high=True)
        low = 0.0
        high = 1.0
        for _ in range(60):
            rate = (low + high) / 2
            # The mean, (1 − (1 − r)^N) / r, falls from N to 1 as r grows.
            if -math.expm1(num_steps * math.log1p(-rate)) > mean * rate:
                low = rate
            else:
                high = rate
        return cls(rate)

    def steps_holding(self, mass: float) -> int:
        """Return the smallest N for which the steps 1..N hold this mass without a last one's rest.

        That is 1 − (1 − r)^N ≥ mass: a number of steps for a shared step whose prior is chosen.

        Args:
            mass: In (0, 1).

        Example:
            >>> priors.Geometric(0.5).steps_holding(0.875)
            3
        """
        check_share("mass", mass)
        # Rounding may put the quotient of an exact N a little above it.
        return max(1, math.ceil(math.log1p(-mass) / math.log1p(-self.rate) - 1e-9))

    def log_pmf(self, num_steps: int) -> Tensor:
        logit = math.log(self.rate) - math.log1p(-self.rate)
        logits = torch.full((num_steps,), logit, dtype=torch.float64)
        log_pmf: Tensor = StepDistribution.from_hazard_logits(logits).log_pmf
        return log_pmf

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """Return the rate with the same mass beyond the last step, 1 − (1 − r)^(tuned_for / N)."""
        rate = -math.expm1(math.log1p(-self.rate) * tuned_for / num_steps)
        return type(self)(min(rate, math.nextafter(1.0, 0.0)))


@registry.register("uniform")
@dataclass(frozen=True)
class Uniform(Prior):
    """The prior that gives every step the same probability, p(n) = 1 / N.

    Example:
        >>> priors.Uniform()(4).pmf
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    def log_pmf(self, num_steps: int) -> Tensor:
        return torch.full((num_steps,), -math.log(num_steps), dtype=torch.float64)


@registry.register("tabulated")
@dataclass(frozen=True)
class Tabulated(Prior):
    """The prior whose probabilities p(n) are given, one number a step.

    Args:
        probabilities: Non-negative and summing to 1; as many as the model has steps.

    Example:
        >>> priors.Tabulated((0.25, 0.75))(2).pmf
        tensor([0.2500, 0.7500])
    """

    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "probabilities", tuple(map(float, self.probabilities)))
        total = math.fsum(self.probabilities)
        if not all(p >= 0 for p in self.probabilities) or not math.isclose(
            total, 1.0, abs_tol=1e-6
        ):
            expected = "numbers ≥ 0 that sum to 1"
            remedy = "Divide them by their sum."
            raise ArgumentError("probabilities", expected=expected, got=total, remedy=remedy)

    @classmethod
    def fit(cls, steps: Iterable[int], num_steps: int, smoothing: float = 1.0) -> Self:
        """Estimate p(n) from the steps at which examples halt, with additive smoothing.

        p(n) = (c_n + s) / (Σ_m c_m + s N), with c_n the number of examples that halt at n.

        Args:
            steps: The step of each example, 1-based: the exits of a policy, or the first step whose
                answer stays.
            num_steps: N.
            smoothing: s, added to the count of every step; above 0, no step is excluded.

        Example:
            >>> priors.Tabulated.fit([2, 2, 3], num_steps=3, smoothing=0.5)
            Tabulated(probabilities=(0.1111111111111111, 0.5555555555555556, 0.3333333333333333))
        """
        counts = torch.bincount(torch.as_tensor(list(steps)) - 1, minlength=num_steps)
        smoothed = counts.double() + smoothing
        return cls(tuple((smoothed / smoothed.sum()).tolist()))

    def log_pmf(self, num_steps: int) -> Tensor:
        _check_length(num_steps, len(self.probabilities))
        p = torch.tensor(self.probabilities, dtype=torch.float64)
        return (p / p.sum()).log()


@registry.register("learned")
@dataclass(frozen=True)
class Learned(Prior):
    r"""A prior that is trained with the model: p(n) = softmax_n(log p₀(n) + w_n).

    There is one weight w_n a step, 0 at first. The weights are in `module`, which a `PonderWrapper`
    registers: they are among its `parameters()` and in its `state_dict()`. Equality and `to_dict`
    are about the hyper-parameters alone; copies and pickles keep the weights.

    A prior that is trained by the KL alone follows the posterior, and regularises nothing if the
    posterior is the same for every input: start from a sensible prior, and let it learn slowly.

    Args:
        num_steps: N, the only number of steps it serves.
        initial: The prior p₀ that it starts from, which gives every step some probability; by
            default uniform.

    Example:
        >>> prior = priors.Learned(3)
        >>> model = PonderWrapper(
        ...     nn.Linear(8, 8), 3, head=nn.Linear(8, 2), lambda_head=LambdaHead(8), prior=prior
        ... )
        >>> prior.module.weight in set(model.parameters()), prior(3).pmf.requires_grad
        (True, True)
    """

    num_steps: int
    initial: Prior | None = None

    def __post_init__(self) -> None:
        check_int("num_steps", self.num_steps)
        object.__setattr__(
            self, "module", nn.ParameterDict({"weight": torch.zeros(self.num_steps)})
        )

    def log_pmf(self, num_steps: int) -> Tensor:
        _check_length(num_steps, self.num_steps)
        assert isinstance(self.module, nn.ParameterDict)
        weight = self.module["weight"]
        start = (self.initial or Uniform()).log_pmf(num_steps)
        # MPS has no float64.
        precise = torch.float32 if weight.device.type == "mps" else torch.float64
        return torch.log_softmax(start.to(weight.device, precise) + weight.to(precise), dim=-1)

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """Return an untrained prior for another number of steps, from the rescaled initial one."""
        if num_steps == self.num_steps:
            return self
        return type(self)(
            num_steps, None if self.initial is None else self.initial.rescaled(tuned_for, num_steps)
        )


def _check_length(num_steps: int, own: int) -> None:
    if num_steps != own:
        remedy = "Give it the model's steps."
        raise ArgumentError("prior", expected=f"one over {num_steps} steps", got=own, remedy=remedy)


register = registry.register
get = registry.get
names = registry.names
from_dict = Prior.from_dict
