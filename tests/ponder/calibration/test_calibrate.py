"""Calibration to a target: the chosen threshold is the best by brute force; nothing is pretended; tests stay fresh."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import ponder
from ponder.analysis.sweeps import measure
from ponder.calibration import check_fresh
from ponder.policies import Confidence, Expected, FixedStep, LastStep, Patience, Quantile
from ponder.trajectory import Trajectory
from tests.ponder.checks import refused
from tests.ponder.test_sweep import recorded


@pytest.mark.parametrize("like", [Quantile, Confidence, Patience])
@pytest.mark.parametrize("share", [0.7, 0.95, 1.0])
def test_at_least_takes_the_cheapest_that_qualifies(like: Any, share: float) -> None:
    trajectory = recorded(60)
    done = ponder.calibrate(trajectory, like, at_least=share)
    full = (trajectory.outputs[:, -1].argmax(-1) == trajectory.labels).double().mean().item()
    fit = []
    for policy in done.curve.policies:
        exits = trajectory.replay(policy)
        if (exits.outputs.argmax(-1) == trajectory.labels).double().mean().item() >= share * full - 1e-12:
            fit.append(exits.exit_step.double().mean().item())
    assert done.met
    assert done.point.mean_exit_step == pytest.approx(min(fit))
    assert trajectory.replay(done.policy).exit_step.double().mean().item() == pytest.approx(min(fit))
    assert f"{share:g}" in done.statement


@pytest.mark.parametrize("target", [{"at_most_steps": 3.0}, {"at_most_cost": 0.5}])
def test_at_most_takes_the_best_within_the_budget(target: dict[str, float]) -> None:
    trajectory = recorded(60)
    done = ponder.calibrate(trajectory, Quantile, **target)
    scores = [
        (trajectory.replay(policy).outputs.argmax(-1) == trajectory.labels).double().mean().item()
        for policy in done.curve.policies
        if trajectory.replay(policy).exit_step.double().mean() <= 3.0
    ]
    assert done.met
    assert done.point.score == pytest.approx(max(scores))
    assert done.point.mean_exit_step <= 3.0


@pytest.mark.parametrize("num_steps", [6, 12])
def test_a_budget_of_exactly_a_step_allows_it(num_steps: int) -> None:
    """Rounding must not: a running sum over thresholds misses 1/2 by 1e-14 with a thousand rows."""
    steps, rows = torch.arange(1, num_steps + 1), 1000
    right = torch.arange(rows).unsqueeze(1) < rows * steps / (num_steps + 1)
    outputs = torch.stack([right.float(), (~right).float()], dim=-1)
    trajectory = ponder.Trajectory(
        outputs, None, torch.arange(rows), labels=torch.zeros(rows).long(), task="classification"
    )
    for step in steps.tolist():
        for target in ({"at_most_steps": step}, {"at_most_cost": step / num_steps}):
            done = ponder.calibrate(trajectory, FixedStep, **target)
            assert done.policy == FixedStep(step)
            assert done.point.mean_exit_step == step


def test_what_cannot_be_met_is_said() -> None:
    trajectory = recorded()
    done = ponder.calibrate(trajectory, Patience, at_most_steps=1.5)
    assert not done.met
    assert done.policy == LastStep()
    assert done.point is done.curve.full_depth
    assert done.point.mean_exit_step == 6
    assert "none of 5 thresholds qualify" in done.statement
    assert not ponder.calibrate(trajectory, Quantile, at_least=5.0).met


def test_a_combination_with_one_free_threshold() -> None:
    trajectory = recorded(60)
    done = ponder.calibrate(trajectory, lambda q: Quantile(q) | Patience(2), at_least=0.9, grid=[0.2, 0.5, 0.8])
    assert done.policy in [Quantile(q) | Patience(2) for q in (0.2, 0.5, 0.8)]


def test_the_price_of_a_step_is_a_threshold() -> None:
    trajectory = recorded(200)
    done = ponder.calibrate(trajectory, Expected.fit(recorded(200, seed=1)), at_most_steps=3.0)
    assert isinstance(done.policy, Expected)
    assert done.met


def test_a_metric_and_costs_of_the_users() -> None:
    trajectory = recorded(50, task="regression")

    def closeness(outputs: torch.Tensor, labels: torch.Tensor) -> float:
        return float(1 / (1 + (outputs[:, 0] - labels).square().mean()))

    costs = [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    done = ponder.calibrate(trajectory, Quantile, metric=closeness, at_most_cost=0.6, costs=costs)
    exits = trajectory.replay(done.policy)
    assert done.point.cost == pytest.approx(((exits.exit_step + 1) / 7).double().mean().item())
    assert done.point.score == pytest.approx(closeness(exits.outputs, trajectory.labels))
    assert done.evaluate(recorded(50, task="regression", seed=9)).score > 0


def test_evaluation_is_on_fresh_rows_only() -> None:
    whole = recorded(80)
    first, second = (whole.map(lambda tensor, part=part: tensor[part]) for part in (slice(0, 40), slice(40, 80)))
    done = ponder.calibrate(first, Quantile, at_least=0.9)
    point = done.evaluate(second)
    exits = second.replay(done.policy)
    assert point.mean_exit_step == pytest.approx(exits.exit_step.double().mean().item())
    overlapping = whole.map(lambda tensor: tensor[30:])
    with refused("test", "10 rows with the same id", "30"):
        done.evaluate(overlapping)
    other_rows_with_the_same_ids = recorded(40, seed=5)
    assert done.evaluate(other_rows_with_the_same_ids).mean_exit_step > 0
    repeated = first.map(lambda tensor: tensor[:5])  # the same texts, in another data set: ids begin at 0 again
    with refused("test", "5 rows with the same id", "first_row"):
        done.evaluate(repeated)
    assert done.evaluate(replace(repeated, row_ids=repeated.row_ids + 40)).mean_exit_step > 0
    for part in (first, second):  # unrolled in two calls, each with ids from 0
        both = Trajectory.cat([first, replace(second, row_ids=first.row_ids)])
        with refused("test", "40 rows with the same id"):
            check_fresh(replace(part, row_ids=first.row_ids), both)
    check_fresh(recorded(4, steps=3), first)  # of another model
    check_fresh(first.map(lambda tensor: tensor[:0]), first)
    check_fresh(first, first.map(lambda tensor: tensor[:0]))


def test_rows_that_ran_deeper_are_known_again() -> None:
    """The trap: a shared step calibrated at 4 steps and judged at 8 on the rows that chose its threshold."""
    model = ponder.PonderWrapper(
        torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()),
        num_steps=4,
        head=torch.nn.Linear(4, 3),
        lambda_head=ponder.LambdaHead(4),
        task="classification",
    ).eval()
    inputs, labels = torch.randn(40, 4), torch.randint(3, (40,))
    shallow, deep = (model.record(inputs, labels=labels, num_steps=steps) for steps in (4, 8))
    for chose, test in ((shallow, deep), (deep, shallow)):
        with refused("test", "40 rows with the same id"):
            ponder.calibrate(chose, Confidence, at_most_steps=2.0).evaluate(test)
    check_fresh(model.record(torch.randn(40, 4), labels=labels, num_steps=8), shallow)


def test_full_depth_costs_what_it_costs_where_nobody_is_asked() -> None:
    """The trap: an unmet target cost 1.0, and evaluated 1.33, as if the policy had looked."""
    costs: dict[str, Any] = {"costs": [0.5, 1.0, 1.5, 2.0, 2.5, 3.0], "full_cost": 1.5}
    done = ponder.calibrate(recorded(60), Patience, at_most_steps=1.5, **costs)
    fresh = recorded(60, seed=5)
    assert (done.policy, done.point.cost, done.evaluate(fresh).cost) == (LastStep(), 1.0, 1.0)
    unmet = ponder.control_risk(recorded(60), Confidence, level=0.001)
    assert (unmet.policy.policy, measure(fresh, unmet.policy, **costs).cost) == (LastStep(), 1.0)
    assert measure(fresh, FixedStep(3), **costs).cost == 1.0


def test_bad_input() -> None:
    trajectory = recorded()
    with refused("at_least, at_most_steps, at_most_cost", "none"):
        ponder.calibrate(trajectory, Quantile)
    with refused("at_least, at_most_steps, at_most_cost", "at_least=0.9, at_most_cost=0.5"):
        ponder.calibrate(trajectory, Quantile, at_least=0.9, at_most_cost=0.5)
    with refused("at_least", "-1"):
        ponder.calibrate(trajectory, Quantile, at_least=-1)
    with refused("metric", "above 0"):
        ponder.calibrate(recorded(task="regression"), Quantile, at_least=0.9)
    unlabelled = ponder.Trajectory(trajectory.outputs, trajectory.hazard_logits, trajectory.row_ids)
    with refused("trajectory", "labels"):
        ponder.calibrate(unlabelled, Quantile, at_least=0.9)
    with refused("trajectory", "none"):
        ponder.calibrate(trajectory.map(lambda tensor: tensor[:0]), Quantile, at_least=0.9)
    with refused("grid", "strictly"):
        ponder.calibrate(trajectory, Quantile, at_least=0.9, grid=[0.5, 0.2, 0.9])


@pytest.mark.parametrize("target", [{"at_most_steps": 2.0}, {"at_least": 0.9}])
def test_a_task_without_a_score_asks_for_a_metric(target: dict[str, float]) -> None:
    """Its scores were NaN, of which none qualifies: exits were switched off."""
    plain = recorded(60, steps=4)
    trajectory = replace(plain, task="custom", task_object=ponder.tasks.Custom(classes=True))
    for families in (Confidence, [Confidence, Patience]):
        with refused("metric", "has no score of its own"):
            ponder.calibrate(trajectory, families, **target)

    def accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> float:
        return float((outputs.argmax(-1) == labels).double().mean())

    found = ponder.calibrate(trajectory, Confidence, metric=accuracy, **target)
    assert found.policy == ponder.calibrate(plain, Confidence, **target).policy


def test_a_score_that_is_nan_throughout_is_refused() -> None:
    for target in ({"at_most_steps": 3.0}, {"at_most_cost": 0.5}, {"at_least": 0.9}):
        with refused("metric", "NaN at all"):
            ponder.calibrate(recorded(), Confidence, metric=lambda *_: math.nan, **target)
    numbers = recorded(task="regression")
    numbers.outputs[3] = math.nan
    with refused("metric", "negative_squared_error NaN at all"):
        ponder.calibrate(numbers, Quantile, at_most_steps=3.0)


def test_evaluation_without_labels_is_refused() -> None:
    """The trap: a score of NaN is below no target."""
    done = ponder.calibrate(recorded(60), Quantile, at_least=0.9)
    fresh = replace(recorded(40, seed=5), labels=None, row_ids=torch.arange(100, 140))
    with refused("test", "labels, by which thresholds are judged"):
        done.evaluate(fresh)


def test_costs_that_are_no_numbers_are_named() -> None:
    model = ponder.PonderWrapper(torch.nn.Linear(4, 4), num_steps=7, head=torch.nn.Linear(4, 2))
    cost = ponder.cost.measure(model, torch.randn(2, 4))
    for costs in (cost, "flops"):
        with refused("costs", "costs=cost.cumulative, ", "cost.cumulative(policy.needs)", type_error=True):
            ponder.calibrate(recorded(60), Quantile, at_least=0.9, costs=costs)  # type: ignore[arg-type]
