"""Priors: by their mean, by counts, learned, rescaled, and as plain data; the matrix holds them against an oracle."""

from __future__ import annotations

import copy
import json
import math
import pickle

import pytest
import torch
from torch import nn

import ponder
from ponder import objectives, priors
from ponder.errors import ArgumentError

EVERY: list[priors.Prior] = [
    priors.Geometric(0.1),
    priors.Uniform(),
    priors.Tabulated((0.1, 0.2, 0.3, 0.4)),
    priors.Learned(4),
    priors.Learned(4, priors.Geometric(0.3)),
]


@pytest.mark.parametrize("prior", EVERY, ids=str)
def test_round_trips_and_mass(prior: priors.Prior) -> None:
    again = priors.from_dict(json.loads(json.dumps(prior.to_dict())))
    assert again == prior == pickle.loads(pickle.dumps(prior)) == copy.deepcopy(prior)
    for dtype in (torch.float64, torch.float32, torch.float16):
        made = prior(4, dtype=dtype)
        torch.testing.assert_close(made.pmf, again(4, dtype=dtype).pmf)
        assert float(made.pmf.detach().sum()) == pytest.approx(1.0, abs=1e-6)
        assert made.pmf.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(made.pmf.float(), prior(4).pmf, rtol=1e-6, atol=0)
    with torch.device("meta"):
        assert not priors.Geometric(0.1)(
            4
        ).pmf.is_meta  # numbers, while a model is being built without any


@pytest.mark.parametrize("num_steps", [2, 12, 100])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.55, 0.999])
def test_a_geometric_prior_is_found_by_its_mean(num_steps: int, share: float) -> None:
    mean = 1 + share * (num_steps - 1)
    found = priors.Geometric.for_mean(mean, num_steps)
    assert found(num_steps, dtype=torch.float64).mean.item() == pytest.approx(mean, rel=1e-9)
    for outside in (1.0, float(num_steps), 0.0):
        with pytest.raises(ArgumentError):
            priors.Geometric.for_mean(outside, num_steps)


@pytest.mark.parametrize("num_steps", [1, 6, 12, 48])
def test_priors_are_rescaled_to_another_depth(num_steps: int) -> None:
    for rate in (1e-9, 0.1, 0.999999):
        rescaled = priors.Geometric(rate).rescaled(12, num_steps)
        assert 0.0 < rescaled.rate < 1.0
        remains = num_steps * math.log1p(-rescaled.rate)
        assert remains == pytest.approx(12 * math.log1p(-rate), rel=1e-6) or rescaled.rate > 0.9999
    assert priors.Uniform().rescaled(12, num_steps) == priors.Uniform()
    learned = priors.Learned(12, priors.Geometric(0.1)).rescaled(12, num_steps)
    assert learned == priors.Learned(
        num_steps,
        priors.Geometric(0.1).rescaled(12, num_steps) if num_steps != 12 else priors.Geometric(0.1),
    )


def test_a_table_is_counted_and_serves_its_steps() -> None:
    found = priors.Tabulated.fit([1, 3, 3, 2, 3], num_steps=4)
    assert found.probabilities == pytest.approx((2 / 9, 2 / 9, 4 / 9, 1 / 9))
    assert priors.Tabulated.fit(torch.tensor([2, 2]), 3, smoothing=0.0).probabilities == (
        0.0,
        1.0,
        0.0,
    )
    for prior in (found, priors.Learned(4)):
        with pytest.raises(ArgumentError, match="5 steps"):
            prior(5)
    for wrong in ((0.5, 0.6), (-0.5, 1.5), (math.nan, 1.0)):
        with pytest.raises(ArgumentError, match="sum to 1"):
            priors.Tabulated(wrong)


def test_a_prior_that_gives_no_distribution_is_found() -> None:
    class Broken(priors.Prior):
        def log_pmf(self, num_steps: int) -> torch.Tensor:
            return torch.zeros(num_steps)

    with pytest.raises(ArgumentError, match="sum to 1"):
        Broken()(3)


def test_a_learned_prior_learns_with_the_model_and_goes_with_it() -> None:
    prior = priors.Learned(4, priors.Geometric(0.3))
    model = ponder.PonderWrapper(
        nn.Linear(8, 8), 4, head=nn.Linear(8, 3), lambda_head=ponder.LambdaHead(8), prior=prior,
        objective=objectives.Ponder(0.5),
    ).train()  # fmt: skip
    torch.testing.assert_close(prior(4).pmf, priors.Geometric(0.3)(4).pmf)
    model(torch.randn(5, 8), labels=torch.randint(3, (5,))).loss.backward()
    (weight,) = prior.module.parameters()
    assert weight.grad is not None
    assert any(weight is own for own in model.parameters())
    with torch.no_grad():
        weight.copy_(torch.tensor([5.0, 0.0, 0.0, 0.0]))
    copies = [
        copy.deepcopy(prior),
        pickle.loads(pickle.dumps(prior)),
        priors.from_dict(prior.to_dict()),
    ]
    first = [each(4).pmf.detach()[0].item() for each in copies]
    assert first[0] == first[1] > 0.9
    assert first[2] == pytest.approx(0.3)  # hyper-parameters alone


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("mass", [0.1, 0.5, 0.75, 0.875, 0.99])
def test_the_smallest_number_of_steps_that_holds_a_mass(rate: float, mass: float) -> None:
    found = priors.Geometric(rate).steps_holding(mass)
    assert 1 - (1 - rate) ** found >= mass - 1e-9
    assert found == 1 or 1 - (1 - rate) ** (found - 1) < mass
