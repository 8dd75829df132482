"""`check_prior` passes the library's own priors, and names the rule that a broken one breaks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from ponder import priors
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.priors import Categorical, Geometric, Prior, Uniform
from ponder.testing import ContractError, check_prior
from tests.ponder.examples import PRIORS, Example, make_prior


@pytest.fixture(autouse=True)
def _own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prior.registry, "_factories", dict(Prior.registry._factories))


@pytest.mark.parametrize("case", PRIORS, ids=str)
def test_the_librarys_own_priors_keep_the_contract(case: Example) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert check_prior(make_prior(case)) is None
    assert torch.equal(before, torch.get_rng_state())


def test_a_prior_may_exclude_steps_and_may_learn() -> None:
    check_prior(Categorical((0.0, 1.0)))
    learned = priors.Learned(5)
    with torch.no_grad():
        learned.logits.add_(torch.arange(5.0))
    check_prior(learned)


def weights(num_steps: int) -> torch.Tensor:
    return torch.arange(1, num_steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class Unnormalised(Prior):
    def log_pmf(self, num_steps):
        return weights(num_steps).log()


@dataclass(frozen=True)
class Truncated(Prior):
    """Geometric without the mass that is left."""

    def log_pmf(self, num_steps):
        return torch.full((num_steps,), 0.5, dtype=torch.float64).cumprod(0).log()


@dataclass(frozen=True)
class Float32(Prior):
    def log_pmf(self, num_steps):
        return torch.log_softmax(torch.zeros(num_steps), 0)


@dataclass(frozen=True)
class Batched(Prior):
    def log_pmf(self, num_steps):
        return torch.log_softmax(torch.zeros(1, num_steps, dtype=torch.float64), 1)


@dataclass(frozen=True)
class GivesNan(Prior):
    def log_pmf(self, num_steps):
        return (weights(num_steps) - 2).log()


@dataclass(frozen=True)
class Draws(Prior):
    def log_pmf(self, num_steps):
        return torch.log_softmax(torch.rand(num_steps, dtype=torch.float64), 0)


@dataclass(frozen=True)
class Fails(Prior):
    def log_pmf(self, num_steps):
        return torch.log_softmax(weights(num_steps)[10:] * weights(num_steps)[:3], 0)


@dataclass(frozen=True)
class RescalesWrongly(Prior):
    rate: float = 0.2

    def log_pmf(self, num_steps):
        return Geometric(self.rate).log_pmf(num_steps)

    def rescaled(self, tuned_for, num_steps):
        return RescalesWrongly(self.rate * tuned_for / (num_steps + 1))


@dataclass(frozen=True)
class Unregistered(Prior):
    def log_pmf(self, num_steps):
        return Uniform().log_pmf(num_steps)


class NoDataclass(Unregistered):
    pass


@pytest.mark.parametrize(
    ("prior", "rule", "seen"),
    [
        (Unnormalised(), "sum to 1", "sum to 3 over 2 steps"),
        (Truncated(), "sum to 1", "0.5 over 1 steps"),
        (Float32(), "log_pmf is float64", "float32 (1,)"),
        (Batched(), "log_pmf is float64", "(1, 1) for 1 steps"),
        (GivesNan(), "sum to 1", "nan"),
        (Draws(), "log_pmf is pure", "different results"),
        (Fails(), "or refuses with an ArgumentError", "RuntimeError"),
        (RescalesWrongly(), "rescaling to the same number", "rescaled(2, 2)"),
        (Unregistered(), "is registered", "Unregistered"),
        (NoDataclass(), "frozen dataclass", "no dataclass of its own"),
        (Categorical((0.2, 0.3, 0.5)), "serves some number of steps", "refused all of [1, 2, 5, 12, 100]"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Prior) else None,
)
def test_a_broken_prior_is_caught(prior: Prior, rule: str, seen: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_prior(prior)
    assert rule in caught.value.rule, caught.value
    assert seen in caught.value.seen, caught.value


def test_numbers_of_steps_that_it_serves() -> None:
    check_prior(Categorical((0.2, 0.3, 0.5)), num_steps=[3])


@dataclass(frozen=True)
class Spike(Prior):
    """Everything on one step, whose field does not come back."""

    step: int = 1

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ArgumentError("step", expected="≥ 1", got=self.step, remedy="Count from 1.")
        object.__setattr__(self, "step", self.step + 1)

    def log_pmf(self, num_steps):
        return Uniform().log_pmf(num_steps)


def test_a_field_that_does_not_come_back() -> None:
    priors.register("spike")(Spike)
    with pytest.raises(ContractError, match=r"by way of JSON.*came back as Spike\(step=3\)"):
        check_prior(Spike())


def test_what_is_no_prior() -> None:
    with pytest.raises(ArgumentTypeError, match="got the class Uniform"):
        check_prior(Uniform)  # type: ignore[arg-type]


@dataclass(frozen=True)
class UpsideDown(priors.Prior):
    """The mean of the prior, the wrong way round where there are more steps."""

    mean: float = 3.0

    def log_pmf(self, num_steps):
        places = torch.arange(1, num_steps + 1, dtype=torch.float64)
        return (-((places - self.mean) ** 2)).log_softmax(0)

    def rescaled(self, tuned_for, num_steps):
        return replace(self, mean=self.mean * tuned_for / num_steps)


def test_a_prior_that_is_rescaled_the_wrong_way_is_caught() -> None:
    with pytest.raises(ContractError, match="moves the mean no earlier"):
        check_prior(UpsideDown(), num_steps=[5])


@dataclass(frozen=True, repr=False)
class LearnsNothing(priors.Learned):
    def log_pmf(self, num_steps):
        return super().log_pmf(num_steps).detach()


def test_a_prior_whose_weights_get_no_gradient_is_caught() -> None:
    with pytest.raises(ContractError, match="has a gradient"):
        check_prior(LearnsNothing(5), num_steps=[5])
