"""What a Lambda head could have learnt."""

import math

import pytest
import torch

from benchmarks.glue.diagnostics import optimum
from ponder import Trajectory, priors
from ponder.objectives import DeepSupervision, Ponder


def trajectory(hazards=True):
    """Ten examples, four steps: half of them are right from the first step on, half only at the last."""
    torch.manual_seed(0)
    early = torch.tensor([2.0, 2.0, 2.0, 2.0]).repeat(5, 1)
    late = torch.tensor([-2.0, -2.0, -2.0, 2.0]).repeat(5, 1)
    of_label = torch.cat([early, late])
    outputs = torch.stack([torch.zeros(10, 4), of_label], dim=-1)
    return Trajectory(
        outputs,
        torch.randn(10, 4) if hazards else None,
        torch.arange(10),
        labels=torch.ones(10, dtype=torch.long),
        task="classification",
    )


def test_it_is_the_plain_sum_over_steps():
    recorded, prior = trajectory(), priors.Geometric(0.3)
    found = optimum(recorded, Ponder(0.5), prior)
    right, wrong = math.log1p(math.exp(-2.0)), math.log1p(math.exp(2.0))
    p = [0.3, 0.21, 0.147, 0.343]

    def gibbs(losses):
        weights = [mass * math.exp(-loss / 0.5) for mass, loss in zip(p, losses, strict=True)]
        return [weight / sum(weights) for weight in weights]

    mean = (right + wrong) / 2
    assert found["blind"] == pytest.approx(gibbs([mean, mean, mean, right]), rel=1e-5)
    early, late = (
        sum(n * mass for n, mass in enumerate(gibbs(losses), start=1))
        for losses in ([right] * 4, [wrong, wrong, wrong, right])
    )
    mean_step = (early + late) / 2
    spread = math.sqrt(5 * ((early - mean_step) ** 2 + (late - mean_step) ** 2) / 9)
    assert found["spread_oracle"] == pytest.approx(spread, rel=1e-5)
    expected = [sum(n * mass for n, mass in enumerate(row, start=1)) for row in recorded.halting.pmf.tolist()]
    assert found["spread_learnt"] == pytest.approx(torch.tensor(expected).std().item(), rel=1e-4)


def test_other_terms_do_not_train_the_lambda_head():
    recorded, prior = trajectory(), priors.Geometric(0.3)
    alone = optimum(recorded, Ponder(0.5), prior)
    assert optimum(recorded, 2.0 * Ponder(0.5) + DeepSupervision("linear"), prior) == alone


@pytest.mark.parametrize(
    "arguments",
    [
        (trajectory(hazards=False), Ponder(0.5), priors.Geometric(0.3)),
        (trajectory(), DeepSupervision("linear"), priors.Geometric(0.3)),
        (trajectory(), Ponder(0.5), None),
        (trajectory(), Ponder(0.0), priors.Geometric(0.3)),
        (trajectory(), Ponder(0.5, kl="prior_posterior"), priors.Geometric(0.3)),
    ],
)
def test_there_is_none_without_a_head_a_prior_or_a_closed_form(arguments):
    assert optimum(*arguments) is None
