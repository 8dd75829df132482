"""PonderNet's objective: the likelihood under a latent halting step, and a KL to a prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ponder._utils.checks import check_choice, check_real
from ponder.objectives.base import Objective, Unrolled, registry

__all__ = ["Ponder"]


@registry.register("ponder")
@dataclass(frozen=True)
class Ponder(Objective):
    """The loss of a latent halting step, minimised.

    Σ_n p(n|x) ℓ_n + β KL(p(·|x) ‖ p(·)), with ℓ_n = −log p(y|x, n).

    Banino et al. 2021, Eq. 2; PALBERT paper, Eq. 2. All N steps count, the last with the mass that
    remains.

    Args:
        beta: Weight β ≥ 0 of the divergence.
        kl: ``"posterior_prior"``, KL(posterior ‖ prior) as in the papers; ``"prior_posterior"``,
            the other direction, as in PALBERT's released code.
        likelihood: ``"expected_log"``, Σ p(n|x) ℓ_n (the evidence lower bound); ``"log_expected"``,
            −log Σ p(n|x) exp(−ℓ_n), the likelihood of the mixture over steps.

    Example:
        >>> model.objective = objectives.Ponder(0.5)
        >>> model.train()(inputs, labels=labels).loss.shape
        torch.Size([])
    """

    beta: float
    kl: Literal["posterior_prior", "prior_posterior"] = "posterior_prior"
    likelihood: Literal["expected_log", "log_expected"] = "expected_log"
    needs = frozenset({"hazard", "prior"})

    def __post_init__(self) -> None:
        check_real("beta", self.beta)
        check_choice("kl", self.kl, ("posterior_prior", "prior_posterior"))
        check_choice("likelihood", self.likelihood, ("expected_log", "log_expected"))

    def per_example(self, unrolled: Unrolled) -> Tensor:
        posterior = unrolled.given("halting")
        prior = unrolled.given("prior")
        if self.likelihood == "expected_log":
            fit: Tensor = (posterior.pmf * unrolled.losses).sum(-1)
        else:
            fit = -torch.logsumexp(posterior.log_pmf - unrolled.losses, dim=-1)
        if not self.beta:
            return fit  # the KL is infinite if the prior excludes a step, and 0 · ∞ is NaN
        if self.kl == "posterior_prior":
            divergence = kl_divergence(posterior, prior)
        else:
            divergence = kl_divergence(prior, posterior)
        return fit + self.beta * divergence
