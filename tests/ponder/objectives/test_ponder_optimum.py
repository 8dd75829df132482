"""The closed optimum of the evidence lower bound, against random distributions and gradient descent."""

import math

import pytest
import torch

import ponder
from ponder import StepDistribution, objectives, priors
from ponder.errors import ArgumentError
from ponder.objectives import Ponder, Unrolled
from ponder.parts.tasks import as_task
from tests.ponder.checks import refused

LATE = priors.Categorical((0.0, 0.5, 0.5))


def value(objective, losses, halting, prior):
    unrolled = Unrolled(torch.zeros(*losses.shape, 2), losses, as_task("classification"), halting, prior)
    return objective.per_example(unrolled)


@pytest.mark.parametrize("beta", [0.05, 0.5, 3.0])
def test_nothing_is_below_the_optimum_and_its_value_is_the_free_energy(beta):
    torch.manual_seed(0)
    losses, prior, objective = torch.rand(8, 6, dtype=torch.double) * 3, priors.Geometric(0.2)(6), Ponder(beta)
    prior = StepDistribution(prior.log_pmf.double())
    best = objective.optimum(losses, prior)
    least = value(objective, losses, best, prior)
    for row, loss in zip(losses.tolist(), least.tolist(), strict=True):
        terms = [p * math.exp(-each / beta) for p, each in zip(prior.pmf.tolist(), row, strict=True)]
        assert loss == pytest.approx(-beta * math.log(math.fsum(terms)), rel=1e-9)
    for _ in range(50):
        other = StepDistribution.from_hazard_logits(2 * torch.randn(8, 6, dtype=torch.double))
        assert bool((value(objective, losses, other, prior) >= least - 1e-9).all())


def test_a_lambda_head_descends_to_it():
    torch.manual_seed(0)
    losses, prior, objective = torch.rand(3, 5) * 2, priors.Uniform()(5), Ponder(0.5)
    logits = torch.zeros(3, 5, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        value(objective, losses, StepDistribution.from_hazard_logits(logits), prior).sum().backward()
        optimizer.step()
    learnt = StepDistribution.from_hazard_logits(logits.detach()).pmf
    torch.testing.assert_close(learnt, objective.optimum(losses, prior).pmf, rtol=0.01, atol=0.002)


def test_equal_losses_leave_the_prior_and_a_small_beta_takes_the_best_step():
    prior = priors.Geometric(0.3)(4)
    torch.testing.assert_close(Ponder(0.5).optimum(torch.full((4,), 7.0), prior).pmf, prior.pmf)
    assert Ponder(1e-3).optimum(torch.tensor([1.0, 0.2, 0.5, 0.9]), prior).pmf[1] > 0.999
    assert bool(Ponder(1e-6).optimum(torch.tensor([1e4, 0.0, 1.0, 1e4]), prior).pmf.isfinite().all())


@pytest.mark.parametrize(
    "objective", [Ponder(0.0), Ponder(1.0, kl="prior_posterior"), Ponder(1.0, likelihood="log_expected")]
)
def test_objectives_without_a_closed_optimum_say_so(objective):
    with pytest.raises(ArgumentError, match=r"beta > 0.*minimise"):
        objective.optimum(torch.zeros(4), priors.Uniform()(4))


@pytest.mark.parametrize("kl", ["posterior_prior", "prior_posterior"])
def test_without_a_weight_the_divergence_does_not_count_where_the_prior_excludes_a_step(kl):
    model = ponder.PonderWrapper(
        torch.nn.Linear(4, 4),
        num_steps=3,
        head=torch.nn.Linear(4, 2),
        lambda_head=ponder.LambdaHead(4),
        prior=priors.Categorical((0.5, 0.5, 0.0)),
        objective=objectives.Ponder(0.0, kl=kl),
    )
    loss = model.train()(torch.randn(3, 4), labels=torch.tensor([0, 1, 1])).loss
    loss.backward()
    assert loss.isfinite()


def test_a_prior_that_excludes_a_step_is_refused_where_it_makes_the_loss_infinite():
    """Trap: a loss of infinity, gradients of NaN, and a trainer that logs 0."""

    def model(objective, prior=LATE):
        return ponder.PonderWrapper(
            torch.nn.Linear(4, 4),
            3,
            head=torch.nn.Linear(4, 2),
            lambda_head=ponder.LambdaHead(4),
            prior=prior,
            objective=objective,
        )

    for objective in (
        Ponder(0.5),
        Ponder(0.5) + objectives.FinalStep(),
        objectives.Alternating(Ponder(0.5), Ponder(0)),
    ):
        with refused("prior", "none at steps [1]"):
            model(objective)
    kept = model(Ponder(0.5), priors.Geometric(0.1))
    with refused("prior", "none at steps [1]"):
        kept.prior = LATE
    for objective in (Ponder(0.0), Ponder(0.5, kl="prior_posterior")):
        made = model(objective).train()
        made(torch.randn(5, 4), labels=torch.tensor([0, 1, 0, 1, 1])).loss.backward()
        assert all(bool(weight.grad.isfinite().all()) for weight in made.parameters())
