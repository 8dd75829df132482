"""The halting distribution: a distribution over the steps 1..N.

A hazard λ_n is the probability of stopping at step n given that no earlier step stopped. Hazards
induce

    p(n) = λ_n Π_{j<n} (1 − λ_j),    p(N) = Π_{j<N} (1 − λ_j),

the generalised geometric of PonderNet (Banino et al. 2021, Eq. 6; PALBERT paper, Eq. 1), whose last
step takes all the mass that is left. Everything is computed in log space, in float32 or float64.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl
from torch.distributions.utils import lazy_property

from ponder._utils.arrays import at_least_float32, weighted
from ponder.errors import ArgumentError

__all__ = ["StepDistribution", "log_masses"]


class StepDistribution(Distribution):
    """A distribution over the step at which computation stops, 1..N.

    Args:
        log_pmf: Log-probabilities of the steps, `(…, steps)`, normalised over the last dimension.
            −inf is a step that cannot happen. Half precision is promoted to float32.
        validate_args: Whether to check that masses sum to one, as for PyTorch's own distributions.

    Raises:
        ArgumentError: When validating, `log_pmf` does not sum to one.

    Example:
        >>> halting = StepDistribution.from_hazard_logits(torch.tensor([0.0, 0.0, 0.0]))
        >>> halting.pmf
        tensor([0.5000, 0.2500, 0.2500])
        >>> halting.mean
        tensor(1.7500)
    """

    arg_constraints = {"log_pmf": constraints.real_vector}  # noqa: RUF012 (torch's own protocol)

    def __init__(self, log_pmf: Tensor, validate_args: bool | None = None) -> None:
        self.log_pmf: Tensor = at_least_float32(log_pmf)
        super().__init__(log_pmf.shape[:-1], validate_args=validate_args)
        if self._validate_args:
            total = self.log_pmf.detach().logsumexp(-1).exp()
            if not bool(((total - 1).abs() < 1e-3).all()):
                got = f"sums between {total.min().item():.6g} and {total.max().item():.6g}"
                remedy = "Normalise with log_softmax, or use StepDistribution.from_hazard_logits."
                raise ArgumentError(
                    "log_pmf", expected="log-probabilities that sum to 1", got=got, remedy=remedy
                )

    @classmethod
    def from_hazard_logits(cls, logits: Tensor) -> Self:
        """The distribution that hazards σ(logits), `(…, steps)`, induce.

        The last hazard is ignored.

        Finite, with finite gradients, for any finite logits.
        """
        return cls(log_masses(logits), validate_args=False)

    @property
    def num_steps(self) -> int:
        """The number of steps N."""
        return self.log_pmf.shape[-1]

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """The steps 1..N."""
        return constraints.integer_interval(1, self.num_steps)

    @lazy_property
    def pmf(self) -> Tensor:
        """The probabilities of the steps, `(…, steps)`."""
        return self.log_pmf.exp()

    @property
    def hazard(self) -> Tensor:
        """The hazards λ_n = p(n) / P(step ≥ n), `(…, steps)`; 1 at the last step."""
        log_survival = self.log_pmf.flip(-1).logcumsumexp(-1).flip(-1)
        return (self.log_pmf - log_survival).exp()

    @lazy_property
    def cdf_table(self) -> Tensor:
        """P(stop at n or before) of every step n, `(…, steps)`; exactly 1 at the last."""
        return F.pad(self.pmf[..., :-1].cumsum(-1).clamp(max=1.0), (0, 1), value=1.0)

    @property
    def mean(self) -> Tensor:
        """The expected step, Σ_n n p(n)."""
        return (self.pmf * self._steps()).sum(-1)

    @property
    def variance(self) -> Tensor:
        """The variance of the step."""
        return (self.pmf * (self._steps() - self.mean.unsqueeze(-1)) ** 2).sum(-1)

    @property
    def mode(self) -> Tensor:
        """The most probable step (the first of them)."""
        return self.log_pmf.argmax(-1) + 1

    def entropy(self) -> Tensor:
        """The entropy in nats; steps without mass add nothing."""
        return -weighted(self.pmf, self.log_pmf).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability of the steps `value` (1-based), broadcast against the batch."""
        return self._look_up(self.log_pmf, value)

    def cdf(self, value: Tensor) -> Tensor:
        """P(step ≤ value) for the steps `value` (1-based)."""
        return self._look_up(self.cdf_table, value)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile function: the first step n with CDF_n ≥ value, for `value` in [0, 1].

        The exit rules (`policies.Quantile`, `policies.Bernoulli`) use CDF_n > q, as their papers
        do; the two differ only if a CDF equals q exactly.
        """
        value = torch.as_tensor(value, dtype=self.log_pmf.dtype, device=self.log_pmf.device)
        return (self.cdf_table[..., :-1] < value.unsqueeze(-1)).sum(-1) + 1

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Steps drawn from the distribution, `sample_shape + batch_shape`, long and 1-based."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            u = torch.rand(shape, dtype=self.log_pmf.dtype, device=self.log_pmf.device)
            return (self.cdf_table[..., :-1] <= u.unsqueeze(-1)).sum(-1) + 1

    def expand(self, batch_shape: Any, _instance: Any = None) -> StepDistribution:
        """The same distribution for a larger batch, without copying."""
        expanded = self.log_pmf.expand(torch.Size(batch_shape) + self.log_pmf.shape[-1:])
        return StepDistribution(expanded, validate_args=False)

    def _steps(self) -> Tensor:
        return torch.arange(
            1, self.num_steps + 1, dtype=self.log_pmf.dtype, device=self.log_pmf.device
        )

    def _look_up(self, table: Tensor, value: Tensor) -> Tensor:
        self._validate_sample(value)
        index = (value.long() - 1).unsqueeze(-1)
        shape = torch.broadcast_shapes(index.shape[:-1], table.shape[:-1])
        return table.expand(*shape, -1).gather(-1, index.expand(*shape, 1)).squeeze(-1)


def log_masses(hazard_logits: Tensor, mass: Literal["rest", "lost"] = "rest") -> Tensor:
    """Return the logarithms of the masses of the steps, `(…, steps)`, of hazard logits.

    Args:
        hazard_logits: `(…, steps)`; half precision is promoted to float32.
        mass: The mass that is left at the last step: the step takes the ``"rest"``, so that the
            masses sum to 1, or its own hazard of it, λ_N Π_{j<N} (1 − λ_j), and what remains is
            ``"lost"``.

    Example:
        >>> log_masses(torch.tensor([0.0, 0.0, 0.0]), mass="lost").exp()
        tensor([0.5000, 0.2500, 0.1250])
    """
    logits = at_least_float32(hazard_logits)
    early = logits[..., :-1]
    log_survival = F.pad(F.logsigmoid(-early).cumsum(-1), (1, 0))
    if mass == "lost":
        return F.logsigmoid(logits) + log_survival
    return F.pad(F.logsigmoid(early), (0, 1)) + log_survival


@register_kl(StepDistribution, StepDistribution)  # type: ignore[untyped-decorator]
def _kl_step_step(p: StepDistribution, q: StepDistribution) -> Tensor:
    """KL(p ‖ q) = Σ_n p(n) (log p(n) − log q(n)), infinite if q excludes a step that p allows."""
    return weighted(p.pmf, p.log_pmf - q.log_pmf.to(p.log_pmf.dtype)).sum(-1)
