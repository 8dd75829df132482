"""PonderNet's objective: the likelihood of the labels under a latent halting step, and a KL to a prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ponder.errors import ArgumentError
from ponder.objectives.base import Objective, Unrolled, registry

__all__ = ["Ponder"]

_KL = ("posterior_prior", "prior_posterior")
_LIKELIHOOD = ("expected_log", "log_expected")


@registry.register("ponder")
@dataclass(frozen=True)
class Ponder(Objective):
    """The loss of a latent halting step, minimised.

    Σ_n p(n|x) ℓ_n + β KL(p(·|x) ‖ p(·)), with ℓ_n = −log p(y|x, n).

    Banino et al. 2021, Eq. 2; PALBERT paper, Eq. 2. All N steps count, the last with the mass that is left.

    Args:
        beta: Weight β ≥ 0 of the divergence.
        kl: ``"posterior_prior"``, KL(posterior ‖ prior) as in the papers; ``"prior_posterior"``, the other
            direction, as in PALBERT's released code.
        likelihood: ``"expected_log"``, Σ p(n|x) ℓ_n (the evidence lower bound); ``"log_expected"``,
            −log Σ p(n|x) exp(−ℓ_n), the likelihood of the mixture over steps.
    """

    beta: float
    kl: Literal["posterior_prior", "prior_posterior"] = "posterior_prior"
    likelihood: Literal["expected_log", "log_expected"] = "expected_log"
    needs = frozenset({"hazard", "prior"})
    truncatable = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta < float("inf"):
            raise ArgumentError("beta", expected="a number ≥ 0", got=self.beta, remedy="Pass beta=0.5, say.")
        for argument, got, known in (("kl", self.kl, _KL), ("likelihood", self.likelihood, _LIKELIHOOD)):
            if got not in known:
                raise ArgumentError(argument, expected=" or ".join(known), got=repr(got), remedy="Choose one of them.")

    def per_example(self, unrolled: Unrolled) -> Tensor:
        posterior, prior = unrolled.halting, unrolled.prior
        assert posterior is not None  # `check` saw to both
        assert prior is not None
        if self.likelihood == "expected_log":
            fit = (posterior.pmf * unrolled.losses).sum(-1)
        else:
            fit = -torch.logsumexp(posterior.log_pmf - unrolled.losses, dim=-1)
        prior = prior.expand(posterior.batch_shape)
        forward = self.kl == "posterior_prior"
        divergence = kl_divergence(posterior, prior) if forward else kl_divergence(prior, posterior)
        return fit + self.beta * divergence
