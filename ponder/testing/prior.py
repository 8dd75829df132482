"""The contract of priors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ponder.distributions import StepDistribution
from ponder.errors import ArgumentError
from ponder.priors import Prior
from ponder.testing.contract import ContractError, require
from ponder.testing.plugin import check_copies, check_frozen, check_registered
from ponder.testing.randomness import generator, private_randomness

__all__ = ["check_prior"]

_WITHIN = 1e-6


def check_prior(prior: Prior, *, num_steps: Sequence[int] = (1, 2, 5, 12, 100)) -> None:
    """Check that a prior keeps its contract; return None, or raise what says which rule broke.

    The rules: a frozen dataclass that is registered and comes back from JSON, pickle and deepcopy; `log_pmf` is pure,
    float64, `(steps,)`, and sums to 1 within 1e-6; the divergence of a posterior with full support from it is finite,
    or infinite where the prior excludes a step; `rescaled` to the same number of steps changes nothing, and to more of
    them moves the mean no earlier; the probabilities of a prior that learns have a gradient.

    Args:
        prior: The prior.
        num_steps: Numbers of steps to try; it may refuse some with an `ArgumentError`, but not all.

    Raises:
        ContractError: A rule is broken.

    Example:
        >>> from ponder import priors
        >>> from ponder.testing import check_prior
        >>> check_prior(priors.Categorical((0.2, 0.8)), num_steps=[2, 3])
    """
    with private_randomness(0):
        check_frozen("prior", prior, Prior)
        served = [n for n in num_steps if _serves(prior, n)]
        require(
            bool(served),
            prior,
            "a prior serves some number of steps",
            f"it refused all of {list(num_steps)}",
            "Pass num_steps=[…] with a number that it can serve.",
        )
        for n in served:
            _check_pmf(prior, n)
            _check_divergence(prior, n)
            _check_rescaled(prior, n)
        check_registered(prior)
        learns = prior.module is not None  # then weights are no part of to_dict
        check_copies(prior, lambda a, b: learns or all(torch.equal(a.log_pmf(n), b.log_pmf(n)) for n in served))


def _serves(prior: Prior, n: int) -> bool:
    try:
        prior.log_pmf(n)
    except ArgumentError:
        return False
    except Exception as error:
        raise ContractError(
            prior,
            "a prior gives log-probabilities or refuses with an ArgumentError",
            f"{n} steps: {type(error).__name__}: {error}",
            "Raise ponder.errors.ArgumentError for a number of steps that cannot work.",
        ) from error
    return True


def _check_pmf(prior: Prior, n: int) -> None:
    log_pmf = prior.log_pmf(n)
    form = f"{log_pmf.dtype} {tuple(log_pmf.shape)}" if isinstance(log_pmf, Tensor) else type(log_pmf).__name__
    require(
        isinstance(log_pmf, Tensor) and log_pmf.dtype == torch.float64 and log_pmf.shape == (n,),
        prior,
        "log_pmf is float64, one number a step",
        f"{form} for {n} steps",
        "Compute in dtype=torch.float64, without a batch dimension.",
    )
    require(
        prior.module is None or log_pmf.requires_grad or n == 1,
        prior,
        "a prior that learns has a gradient",
        f"log_pmf({n}) has none, although there is a module",
        "Compute log_pmf from the module's parameters, without detaching them.",
    )
    log_pmf = log_pmf.detach()
    total = float(log_pmf.exp().sum())
    require(
        abs(total - 1) <= _WITHIN and not bool(log_pmf.isnan().any()),
        prior,
        "probabilities sum to 1",
        f"they sum to {total:.8g} over {n} steps",
        "Normalise with log_softmax, or give the last step the mass that is left.",
    )
    before = log_pmf.clone()
    require(
        torch.equal(prior.log_pmf(n).detach(), before) and torch.equal(log_pmf, before),
        prior,
        "log_pmf is pure",
        f"two calls with {n} steps gave different results",
        "Draw no random numbers and keep nothing.",
    )


def _check_divergence(prior: Prior, n: int) -> None:
    logits = torch.randn(3, n, generator=generator(n), dtype=torch.float64, requires_grad=True)
    posterior = StepDistribution.from_hazard_logits(logits)
    made = StepDistribution(prior(n, dtype=torch.float64).log_pmf.detach(), validate_args=False)
    divergence = kl_divergence(posterior, made.expand(posterior.batch_shape))
    excludes = bool((made.log_pmf == -torch.inf).any())
    sound = bool((divergence == torch.inf).all()) if excludes else bool(divergence.isfinite().all())
    if sound and not excludes and n > 1:
        (gradient,) = torch.autograd.grad(divergence.sum(), logits)
        sound = bool(gradient.isfinite().all())
    require(
        sound,
        prior,
        "the divergence from it is finite, or infinite where it excludes a step",
        f"{divergence.tolist()} over {n} steps",
        "Give every step that may happen a log-probability above −inf.",
    )


def _check_rescaled(prior: Prior, n: int) -> None:
    again = prior.rescaled(n, n)
    require(
        isinstance(again, type(prior)) and torch.allclose(again.log_pmf(n).exp(), prior.log_pmf(n).exp()),
        prior,
        "rescaling to the same number of steps changes nothing",
        f"rescaled({n}, {n}) is {again!r}",
        "Scale by num_steps / tuned_for.",
    )
    wider = prior.rescaled(n, 2 * n)
    if not _serves(wider, 2 * n):
        return
    both = [prior.log_pmf(n).detach(), wider.log_pmf(2 * n).detach()]
    mean, then = (float(StepDistribution(log_pmf, validate_args=False).mean) for log_pmf in both)
    require(
        then >= mean - _WITHIN,
        prior,
        "rescaling to more steps moves the mean no earlier",
        f"the mean is {mean:.4g} over {n} steps, and {then:.4g} of rescaled({n}, {2 * n}) over {2 * n}",
        "Scale by num_steps / tuned_for.",
    )
