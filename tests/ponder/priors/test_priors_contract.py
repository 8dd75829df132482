"""Every registered prior: oracle, normalisation, bad input. More of its contract: tests/ponder/testing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import kl_divergence

from ponder import StepDistribution, priors
from tests.ponder import oracles
from tests.ponder.checks import refused
from tests.ponder.examples import PRIORS, Example, make_prior

every_prior = pytest.mark.parametrize("case", PRIORS, ids=str)
any_length = [case for case in PRIORS if case.name not in ("categorical", "empirical", "learned")]


def test_every_prior_has_an_example_and_an_oracle() -> None:
    assert {case.name for case in PRIORS} == set(priors.names()) == set(oracles.PRIORS)


@every_prior
def test_equals_the_oracle(case: Example) -> None:
    prior = make_prior(case)
    expected = oracles.prior(prior.to_dict(), 5)
    made = prior(5, dtype=torch.float64)
    assert isinstance(made, StepDistribution)
    assert made.batch_shape == ()
    assert made.pmf.tolist() == pytest.approx(expected, abs=1e-12)
    assert made.mean.item() == pytest.approx(oracles.mean(expected))
    assert prior(5).pmf.dtype == torch.float32


@given(st.sampled_from(any_length), st.one_of(st.integers(1, 1000), st.sampled_from([1, 2, 1000])))
def test_normalised_for_any_number_of_steps(case: Example, num_steps: int) -> None:
    prior = make_prior(case)
    for dtype, within in ((torch.float64, 1e-9), (torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-3)):
        made = prior(num_steps, dtype=dtype)
        assert made.num_steps == num_steps
        assert made.pmf.double().sum().item() == pytest.approx(1.0, abs=within)
    if num_steps <= 200:
        assert prior(num_steps).pmf.tolist() == pytest.approx(oracles.prior(prior.to_dict(), num_steps), abs=1e-6)


@given(st.sampled_from(any_length), st.integers(1, 1000), st.floats(-1e4, 1e4))
def test_divergences_from_it_are_finite(case: Example, num_steps: int, logit: float) -> None:
    logits = torch.full((1, num_steps), logit, requires_grad=True)
    posterior = StepDistribution.from_hazard_logits(logits)
    prior = make_prior(case)(num_steps).expand((1,))
    (kl_divergence(posterior, prior) + kl_divergence(prior, posterior)).sum().backward()
    assert bool(logits.grad.isfinite().all())


@every_prior
@pytest.mark.parametrize("num_steps", [0, -1, 2.5, True, "12"])
def test_refuses_what_is_no_number_of_steps(case: Example, num_steps: object) -> None:
    with refused("num_steps", "whole number"):
        make_prior(case)(num_steps)


def test_a_geometric_prior_rescales_by_the_mass_it_leaves() -> None:
    half = priors.Geometric(0.1).rescaled(12, 6)
    assert half.rate == pytest.approx(1 - 0.9**2)
    assert priors.Geometric(0.1).rescaled(12, 12).rate == pytest.approx(0.1)
    assert (1 - half.rate) ** 6 == pytest.approx(0.9**12)


def test_a_normal_prior_rescales_centre_and_width() -> None:
    assert priors.Normal(6.0, 2.0).rescaled(12, 6) == priors.Normal(3.0, 1.0)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: priors.Geometric(0.0), "rate"),
        (lambda: priors.Geometric(1.0), "rate"),
        (lambda: priors.Geometric(math.nan), "rate"),
        (lambda: priors.Poisson(1.0), "mean"),
        (lambda: priors.Poisson(math.inf), "mean"),
        (lambda: priors.Normal(3.0, 0.0), "std"),
        (lambda: priors.Normal(math.nan, 1.0), "mean"),
        (lambda: priors.Normal(math.inf, 1.0), "mean"),
        (lambda: priors.Categorical((0.5, 0.4)), "probabilities"),
        (lambda: priors.Categorical((1.5, -0.5)), "probabilities"),
        (lambda: priors.Categorical((math.nan, 1.0)), "probabilities"),
        (lambda: priors.Categorical(()), "probabilities"),
    ],
)
def test_bad_hyper_parameters_are_refused(make, argument: str) -> None:
    with refused(argument):
        make()


def test_a_categorical_prior_of_another_length_is_refused() -> None:
    with refused("prior", "12 steps", "3 probabilities"):
        priors.Categorical((0.2, 0.3, 0.5))(12)


def test_unknown_names_list_the_known_ones() -> None:
    with refused("prior", "geometric", "'exponential'"):
        priors.get("exponential")
