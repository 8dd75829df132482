"""PonderNet's objective: the likelihood of the labels under a latent halting step, and a KL to a prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ponder._utils.validation import check_choice, check_real
from ponder.distributions import StepDistribution
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

    Example:
        >>> objective = objectives.Ponder(0.5)
        >>> losses = torch.tensor([0.7, 0.4, 0.1])
        >>> [round(p, 2) for p in objective.optimum(losses, priors.Uniform()(3)).pmf.tolist()]  # where it wants to stop
        [0.16, 0.3, 0.54]
    """

    beta: float
    kl: Literal["posterior_prior", "prior_posterior"] = "posterior_prior"
    likelihood: Literal["expected_log", "log_expected"] = "expected_log"
    needs = frozenset({"hazard", "prior"})

    @property
    def truncatable(self) -> bool:  # type: ignore[override]
        """Whether steps that the posterior hardly reaches hardly count; in KL(prior ‖ posterior) they count most."""
        return (not self.beta or self.kl == _KL[0]) and type(self).per_example is Ponder.per_example

    def __post_init__(self) -> None:
        check_real("beta", self.beta, remedy="Pass beta=0.5, say.")
        check_choice("kl", self.kl, _KL)
        check_choice("likelihood", self.likelihood, _LIKELIHOOD)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        posterior, prior = unrolled.halting, unrolled.prior
        assert posterior is not None  # `check` saw to both
        assert prior is not None
        if self.likelihood == "expected_log":
            fit = (posterior.pmf * unrolled.losses).sum(-1)
        else:
            fit = -torch.logsumexp(posterior.log_pmf - unrolled.losses, dim=-1)
        if not self.beta:
            return fit  # 0 · ∞, where the prior excludes a step
        forward = self.kl == "posterior_prior"
        divergence = kl_divergence(posterior, prior) if forward else kl_divergence(prior, posterior)
        return fit + self.beta * divergence

    def check_prior(self, prior: StepDistribution) -> None:
        log_pmf = prior.log_pmf.detach()
        if not self.beta or self.kl != _KL[0] or log_pmf.is_meta or not bool(log_pmf.isneginf().any()):
            return
        excluded = (log_pmf.isneginf().nonzero()[:, -1] + 1).unique().tolist()
        raise ArgumentError(
            "prior",
            expected=f"some mass at every step for {self!r}: every hazard leaves some, so that KL(posterior ‖ prior) "
            "is infinite, and so are the loss and its gradient",
            got=f"none at steps {excluded}",
            remedy="Give them a little, 1e-3 say; and to exit from step 3 on, use a policy.after(3).",
        )

    def optimum(self, losses: Tensor, prior: StepDistribution) -> StepDistribution:
        """The halting distribution that minimises the objective for given losses: p*(n) ∝ p(n) exp(−ℓ_n / β).

        It is what the best of all Lambda heads gives: for the losses of one example, a head that knows them; for the
        mean losses over examples, a head that cannot tell these apart. The least value is −β log Σ_n p(n) exp(−ℓ_n / β)
        (the Gibbs variational principle; Donsker and Varadhan 1975).

        Args:
            losses: ℓ_n, `(…, steps)`.
            prior: The prior, over the same steps.

        Raises:
            ArgumentError: The objective is not the evidence lower bound with β > 0, for which alone this holds.

        Example:
            >>> prior = StepDistribution(torch.tensor([0.25, 0.75]).log())
            >>> Ponder(beta=0.5).optimum(torch.tensor([1.0, 1.0]), prior).pmf
            tensor([0.2500, 0.7500])
        """
        if (self.kl, self.likelihood) != (_KL[0], _LIKELIHOOD[0]) or not self.beta > 0.0:
            raise ArgumentError(
                "objective",
                expected=f"kl={_KL[0]!r}, likelihood={_LIKELIHOOD[0]!r} and beta > 0",
                got=repr(self),
                remedy="Other objectives of this family have no closed optimum; minimise them.",
            )
        return StepDistribution((prior.log_pmf - losses / self.beta).log_softmax(-1), validate_args=False)
