"""`priors.for_mean`: the mean that was asked for, by the plain loops, and families of strangers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponder import priors
from ponder.priors import at_depth
from tests.ponder import oracles
from tests.ponder.checks import refused

FAMILIES = [("geometric", {}), ("poisson", {}), ("normal", {"std": 0.7}), ("normal", {"std": 3.0})]


@given(st.sampled_from(FAMILIES), st.integers(2, 40), st.floats(0.01, 0.99))
def test_has_the_mean(family: tuple[str, dict[str, float]], num_steps: int, where: float) -> None:
    name, fixed = family
    mean = 1 + where * (num_steps - 1)
    prior = priors.for_mean(name, mean, num_steps, **fixed)
    assert prior.to_dict()["name"] == name
    assert all(getattr(prior, field) == value for field, value in fixed.items())
    assert prior(num_steps, dtype=torch.float64).mean.item() == pytest.approx(mean, abs=1e-9)
    if name != "normal":  # whose oracle underflows for centres far away
        assert oracles.mean(oracles.prior(prior.to_dict(), num_steps)) == pytest.approx(mean, abs=1e-6)


def test_finds_a_member_whose_mean_is_known() -> None:
    for known in (priors.Geometric(0.1), priors.Poisson(4.0), priors.Normal(9.0, 2.5)):
        mean = oracles.mean(oracles.prior(known.to_dict(), 12))
        fixed = {"std": 2.5} if known.to_dict()["name"] == "normal" else {}
        found = priors.for_mean(type(known), mean, 12, **fixed)
        assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(known), abs=1e-9)


@pytest.mark.parametrize("mean", [1.00001, 11.99999])
@pytest.mark.parametrize(("name", "fixed"), [*FAMILIES, ("normal", {"std": 1000.0})])
def test_reaches_almost_to_the_ends(name: str, fixed: dict[str, float], mean: float) -> None:
    prior = priors.for_mean(name, mean, 12, **fixed)
    assert prior(12, dtype=torch.float64).mean.item() == pytest.approx(mean, abs=1e-9)


def test_one_step_has_one_mean() -> None:
    assert priors.for_mean("geometric", 1.0, 1) == priors.Geometric(0.5)
    with refused("mean", "(1, 1)"):
        priors.for_mean("geometric", 2.0, 1)


@dataclasses.dataclass(frozen=True)
class Tilted(priors.Prior):
    """A stranger's prior, of no registry: p(n) ∝ exp(−tilt · n), a falling mean, and tilt ≥ 0 by its own interval."""

    tilt: float
    mean_parameter = priors.MeanParameter("tilt", low=0.0)

    def log_pmf(self, num_steps: int) -> torch.Tensor:
        return torch.log_softmax(-self.tilt * torch.arange(1, num_steps + 1, dtype=torch.float64), dim=-1)


def test_a_strangers_family_works_where_it_reaches() -> None:
    prior = priors.for_mean(Tilted, 2.0, 6)
    weights = [math.exp(-prior.tilt * n) for n in range(1, 7)]
    assert sum(n * w for n, w in enumerate(weights, start=1)) / sum(weights) == pytest.approx(2.0, abs=1e-9)
    with refused("mean", "(1, 3.5)", "5.0"):
        priors.for_mean(Tilted, 5.0, 6)


@dataclasses.dataclass(frozen=True)
class Below(Tilted):
    """The same with an interval that is open to the left."""

    mean_parameter = priors.MeanParameter("tilt", high=0.0)


def test_an_interval_may_be_open_to_the_left() -> None:
    assert priors.for_mean(Below, 5.0, 6).tilt == pytest.approx(-priors.for_mean(Tilted, 2.0, 6).tilt)


@pytest.mark.parametrize("mean", [1.0, 12.0, 0.0, 13.0, -math.inf, math.inf, math.nan])
def test_unreachable_means_say_what_is_reached(mean: float) -> None:
    for name, fixed in FAMILIES:
        with refused("mean", "(1, 12)", "12 steps", str(mean)):
            priors.for_mean(name, mean, 12, **fixed)


def test_bad_arguments_are_refused() -> None:
    with refused("family", "uniform", "mean_parameter"):
        priors.for_mean("uniform", 3.0, 6)
    with refused("family", "Categorical"):
        priors.for_mean(priors.Categorical, 3.0, 6)
    with refused("prior", "'exponential'"):
        priors.for_mean("exponential", 3.0, 6)
    for family in (int, priors.Geometric(0.1)):
        with refused("family", type_error=True):
            priors.for_mean(family, 3.0, 6)
    with refused("arguments of normal", "'mean'", "std", type_error=True):
        priors.for_mean("normal", 3.0, 6)
    with refused("arguments of geometric", "'rate'", type_error=True):
        priors.for_mean("geometric", 3.0, 6, rate=0.5)
    with refused("num_steps"):
        priors.for_mean("geometric", 3.0, 0)
    with refused("std"):
        priors.for_mean("normal", 3.0, 6, std=-1.0)


def test_a_prior_by_its_depth_is_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training asks for it at every batch."""
    prior, asked = priors.AtDepth(0.551), list[float]()
    searched = at_depth.for_mean
    monkeypatch.setattr(at_depth, "for_mean", lambda *given: (asked.append(given[1]), searched(*given))[1])
    found = [prior(12).pmf for _ in range(3)]
    assert len(asked) == 1
    assert all(torch.equal(pmf, found[0]) for pmf in found)
    assert prior(6).mean.item() == pytest.approx(1 + 0.551 * 5, rel=1e-4)


def test_a_poisson_prior_is_scaled_with_the_steps() -> None:
    prior = priors.Poisson(6.0).rescaled(12, 6)
    assert prior == priors.Poisson(3.5)
    assert priors.Poisson(1.1).rescaled(12, 2)(2).pmf.isfinite().all()


def test_a_family_that_needs_more_than_a_mean_is_refused_where_it_is_named() -> None:
    # Trap: it was accepted, and failed where a model asked it for its first distribution.
    with refused("arguments of normal", "all hyper-parameters but 'mean'", type_error=True):
        priors.AtDepth(0.5, family="normal")
    with refused("family", "uniform"):
        priors.AtDepth(0.5, family="uniform")
    assert priors.AtDepth(0.5, family="poisson")(5).mean.item() == pytest.approx(3.0)


def test_a_prior_is_asked_for_steps_and_shares_alone() -> None:
    made = priors.Geometric(0.5)(3)
    for ask in (lambda: made.icdf(torch.tensor(2.0)), lambda: made.log_prob(torch.tensor(0))):
        with pytest.raises(ValueError, match="value"):
            ask()


@pytest.mark.parametrize(("mean", "std"), [(3.0, 1e-170), (1e200, 1e-60), (3.0, 1e200)])
def test_the_normal_prior_has_mass_at_every_width(mean: float, std: float) -> None:
    assert float(priors.Normal(mean, std)(5).pmf.sum()) == pytest.approx(1.0)


def test_depths_that_are_step_one_or_n_are_refused() -> None:
    with refused("depth", "1e-17"):
        priors.AtDepth(1e-17)
