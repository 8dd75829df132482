"""Traps that other implementations fell into, one test each.

Two of the design page's traps belong to the benchmarks and are tested there: speed-up reported as three different
quantities, and a threshold chosen on the split that is reported.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import ponder
from ponder import StepDistribution, objectives, policies, priors
from ponder.objectives import Ponder, Unrolled
from ponder.parts.tasks import as_task
from tests.ponder import oracles
from tests.ponder.checks import refused
from tests.toys import WIDTH, labels_for, make_toy, wrap


def trajectory(outputs: torch.Tensor, hazards: list[float] | None = None, task: str = "classification"):
    rows = len(outputs)
    logits = None if hazards is None else torch.tensor(hazards).expand(rows, -1)
    return ponder.Trajectory(outputs, logits, torch.arange(rows), task=task)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_most_confident_rows_exit(normalize: bool) -> None:
    # Trap: entropy from raw exponentials is NaN on the most confident rows, and NaN < t is False.
    sure = torch.zeros(1, 4, 3)
    sure[..., 0] = 1e4
    for outputs in (sure, sure.half(), sure.bfloat16()):
        assert trajectory(outputs).replay(policies.Entropy(0.1, normalize)).exit_step.tolist() == [1]


def test_entropy_of_one_number_is_refused() -> None:
    # Trap: the entropy of a one-logit regression output is 0 and "exits" at step 1.
    with refused("policy", "One number has no entropy"):
        wrap(make_toy("shared"), task="regression", policy=policies.Entropy(0.2))
    model = wrap(make_toy("shared"), task=None, outputs=1).eval()
    with refused("policy", "One number has no entropy"):
        model(torch.zeros(2, WIDTH), policy=policies.Entropy(0.2))


def test_never_stopping_costs_the_last_steps_loss() -> None:
    # Trap: the last step's mass left out of the training pmf, so that λ → 0 wins.
    losses = torch.tensor([[0.1, 0.2, 0.3, 5.0]])
    halting = StepDistribution.from_hazard_logits(torch.full((1, 4), -1e4))
    assert halting.pmf.tolist() == [[0.0, 0.0, 0.0, 1.0]]
    unrolled = Unrolled(torch.zeros(1, 4, 2), losses, as_task("classification"), halting, priors.Uniform()(4))
    assert Ponder(0.0).per_example(unrolled).item() == pytest.approx(5.0)
    assert Ponder(0.0, likelihood="log_expected").per_example(unrolled).item() == pytest.approx(5.0)


def test_the_divergence_has_the_direction_that_it_names() -> None:
    # Trap: KL in the wrong direction.
    logits, prior = [4.0, -1.0, 0.5], priors.Geometric(0.3)
    p, q = oracles.pmf(logits), oracles.prior(prior.to_dict(), 3)
    halting = StepDistribution.from_hazard_logits(torch.tensor([logits]))
    unrolled = Unrolled(torch.zeros(1, 3, 2), torch.zeros(1, 3), as_task("classification"), halting, prior(3))
    forward, backward = oracles.kl(p, q), oracles.kl(q, p)
    assert abs(forward - backward) > 0.1
    assert Ponder(1.0, kl="posterior_prior").per_example(unrolled).item() == pytest.approx(forward, rel=1e-5)
    assert Ponder(1.0, kl="prior_posterior").per_example(unrolled).item() == pytest.approx(backward, rel=1e-5)
    assert Ponder(1.0) == Ponder(1.0, kl="posterior_prior")


def test_sampling_stops_with_the_hazard() -> None:
    # Trap: sampling with p_n where the hazard λ_n is meant (rows would stop at step 2 with 1/4, not 1/2).
    rows = 20_000
    exits = trajectory(torch.zeros(rows, 3, 2), [0.0, 0.0, 0.0]).replay(policies.Bernoulli(5)).exit_step
    alive = (exits > 1).sum().item()
    assert (exits == 2).sum().item() / alive == pytest.approx(0.5, abs=0.02)


def test_losses_are_weighted_before_they_are_reduced() -> None:
    # Trap: cross-entropy reduced before it is weighted by step.
    losses = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    halting = StepDistribution.from_hazard_logits(torch.tensor([[1e4, 0.0], [-1e4, 0.0]]))
    unrolled = Unrolled(torch.zeros(2, 2, 2), losses, as_task("classification"), halting, priors.Uniform()(2))
    each = Ponder(0.0).per_example(unrolled)
    assert each.tolist() == pytest.approx([4.0, 4.0])
    assert each.mean().item() != pytest.approx((losses.mean(0) * halting.pmf.mean(0)).sum().item())
    toy = make_toy("shared")
    model, (inputs, _) = wrap(toy, objective=objectives.DeepSupervision()).train(), toy.batch(4)
    labels = labels_for("classification", 4)
    alone = [model(inputs[i : i + 1], labels=labels[i : i + 1]).loss for i in range(4)]
    torch.testing.assert_close(model(inputs, labels=labels).loss, torch.stack(alone).mean())


@pytest.mark.parametrize("policy", [policies.Confidence(1.0), policies.Entropy(0.0), policies.Margin(1.0)], ids=str)
def test_rows_that_are_never_confident_are_answered(policy) -> None:
    # Trap: rows that are never confident answered with zeros.
    toy = make_toy("shared")
    model, (inputs, _) = wrap(toy).eval(), toy.batch(6)
    out = model(inputs, policy=policy)
    assert out.exit_step.tolist() == [5] * 6
    torch.testing.assert_close(out.outputs, model.unroll(inputs).outputs[:, -1])
    assert bool((out.outputs != 0).all())


def test_patience_for_regression_needs_a_tolerance() -> None:
    # Trap: patience for regression without a tolerance, where two answers are never exactly equal.
    with refused("tolerance", "positive number for regression", "tolerance=0.1"):
        wrap(make_toy("shared"), task="regression", policy=policies.Patience(2))
    wrap(make_toy("shared"), task="regression", policy=policies.Patience(2, tolerance=0.1))


def test_the_quantile_one_runs_to_the_end() -> None:
    # Trap: a threshold where > and >= differ at q = 1, on rows whose CDF is 1 long before the last step.
    saturated = trajectory(torch.zeros(1, 5, 2), [20.0, 1e4, 1e4, 0.0, 0.0])
    assert saturated.halting.cdf_table[0, 1].item() == 1.0
    assert saturated.replay(policies.Quantile(1.0)).exit_step.tolist() == [5]
    assert saturated.replay(policies.Quantile(0.9)).exit_step.tolist() == [1]
    never = trajectory(torch.zeros(1, 5, 2), [-1e4, -1e4, 0.0, 0.0, 0.0])
    assert never.replay(policies.Quantile(0.0)).exit_step.tolist() == [3]


def test_one_layer_repeated_is_no_head_per_step() -> None:
    # Trap: one Linear object repeated with [m] * N where N heads were meant.
    with refused("heads", "distinct modules", "the same module more than once"):
        ponder.PerStep([nn.Linear(WIDTH, 3)] * 5)
    heads = [nn.Linear(WIDTH, 3) for _ in range(4)]
    with refused("heads", "distinct modules"):
        ponder.PerStep([*heads, heads[0]])


def test_hazards_travel_in_log_space() -> None:
    # Trap: the CDF as a product of sigmoids in half precision, which is 1 − 1 = 0 for small hazards.
    logits = torch.full((1, 300), -9.0, dtype=torch.bfloat16)
    halting = StepDistribution.from_hazard_logits(logits)
    expected = 1 - math.exp(-299 * math.log1p(math.exp(-9.0)))
    assert halting.cdf(torch.tensor([299])).item() == pytest.approx(expected, rel=1e-3)
    replay = ponder.Trajectory(torch.zeros(1, 300, 2), logits, torch.arange(1)).replay(policies.Quantile(0.03))
    assert int(replay.exit_step) == math.ceil(math.log(0.97) / -math.log1p(math.exp(-9.0)))
