"""PonderNet's objective: the likelihood under a latent halting step, and a KL to a prior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ponder._utils.arrays import weighted
from ponder._utils.checks import check_choice, check_real
from ponder.distributions import log_masses
from ponder.objectives.base import Objective, Unrolled

__all__ = ["Ponder"]


@dataclass(frozen=True)
class Ponder(Objective):
    """The loss of a latent halting step, minimised.

    Σ_n p(n|x) ℓ_n + β KL(p(·|x) ‖ p(·)), with ℓ_n = −log p(y|x, n).

    Banino et al. 2021, Eq. 2; PALBERT paper, Eq. 2. All N steps count, the last with the mass that
    remains.

    With ``mass="lost"`` and ``floor=0.05`` it is the loss of PALBERT's released code, in which the
    masses do not sum to 1. There a step that begins with a CDF above 1 − floor has the constant
    mass floor / N, and the batch ends once all of its rows have such a CDF: later steps add nothing
    to the fit, but their floors count in the divergence.

    Args:
        beta: Weight β ≥ 0 of the divergence.
        kl: ``"posterior_prior"``, KL(posterior ‖ prior) as in the papers; ``"prior_posterior"``,
            the other direction, as in PALBERT's released code.
        likelihood: ``"expected_log"``, Σ p(n|x) ℓ_n (the evidence lower bound); ``"log_expected"``,
            −log Σ p(n|x) exp(−ℓ_n), the likelihood of the mixture over steps.
        mass: What becomes of the mass that is left at the last step: it takes the ``"rest"``, or
            its hazard of it, and the remainder is ``"lost"``.
        floor: ε in [0, 1); 0 has no floor, and no batch ends early.

    Example:
        >>> model.objective = objectives.Ponder(0.5)
        >>> model.train()(inputs, labels=labels).loss.shape
        torch.Size([])
    """

    beta: float
    kl: Literal["posterior_prior", "prior_posterior"] = "posterior_prior"
    likelihood: Literal["expected_log", "log_expected"] = "expected_log"
    mass: Literal["rest", "lost"] = "rest"
    floor: float = 0.0
    needs = frozenset({"hazard", "prior"})

    def __post_init__(self) -> None:
        check_real("beta", self.beta)
        check_choice("kl", self.kl, ("posterior_prior", "prior_posterior"))
        check_choice("likelihood", self.likelihood, ("expected_log", "log_expected"))
        check_choice("mass", self.mass, ("rest", "lost"))
        check_real("floor", self.floor, 0.0, 1.0, open_high=True)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        log_pmf = log_masses(unrolled.given("hazard_logits"), self.mass)
        log_prior = unrolled.given("prior").log_pmf.to(log_pmf.dtype)
        log_weights = log_pmf
        if self.floor:
            floored = _cdf_before(log_pmf) > 1.0 - self.floor
            log_pmf = log_pmf.masked_fill(floored, math.log(self.floor / log_pmf.shape[-1]))
            # The batch has ended before a step at which all of its rows are floored.
            log_weights = log_pmf.masked_fill(floored.all(0), -math.inf)
        if self.likelihood == "expected_log":
            fit: Tensor = (log_weights.exp() * unrolled.losses).sum(-1)
        else:
            fit = -torch.logsumexp(log_weights - unrolled.losses, dim=-1)
        if not self.beta:
            return fit  # the KL is infinite if the prior excludes a step, and 0 · ∞ is NaN
        if self.kl == "posterior_prior":
            divergence: Tensor = weighted(log_pmf.exp(), log_pmf - log_prior).sum(-1)
        else:
            divergence = weighted(log_prior.exp(), log_prior - log_pmf).sum(-1)
        return fit + self.beta * divergence


def _cdf_before(log_pmf: Tensor) -> Tensor:
    """Return P(stop before step n) of every step n, `(batch, steps)`, without a gradient."""
    pmf = log_pmf.detach().exp()
    return pmf.cumsum(-1) - pmf
