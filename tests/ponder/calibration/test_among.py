"""Calibration among families: never worse than one fixed step on the data it saw."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import ponder
from ponder import policies
from tests.ponder.checks import refused


def record(seed: int, *, knows: bool = True) -> ponder.Trajectory:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (300,), generator=g)
    hard = torch.randint(1, 7, (300, 1), generator=g)
    right = torch.arange(1, 6) >= hard
    given = torch.where(right, labels[:, None], (labels[:, None] + 1) % 3)
    sure = 1.0 + (right if knows else 0.0) + 0.5 * torch.rand(300, 5, generator=g)
    outputs = torch.nn.functional.one_hot(given, 3) * sure.unsqueeze(-1)
    return ponder.Trajectory(outputs.float(), None, torch.arange(300), labels=labels, task="classification")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("knows", [True, False])
def test_it_is_never_worse_than_any_single_step_within_the_budget(seed: int, knows: bool) -> None:
    trajectory = record(seed, knows=knows)
    scores = (trajectory.outputs.argmax(-1) == trajectory.labels[:, None]).double().mean(0).tolist()
    for budget in (1.0, 2.0, 3.5, 5.0):
        found = ponder.calibrate(trajectory, [policies.Confidence, policies.Patience], at_most_steps=budget)
        assert found.met
        assert found.point.mean_exit_step <= budget
        assert found.point.score >= max(scores[: int(budget)]) - 1e-12


def test_a_coin_between_two_steps_is_not_tried_and_can_be_better() -> None:
    """What the docstring says of `calibrate`, where nothing tells the rows apart: a step, and no policy above it."""
    rows = torch.arange(40)
    right = (rows.unsqueeze(1) < torch.tensor([16, 20, 28, 36])).long()
    outputs = torch.nn.functional.one_hot(1 - right, 2) * 2.0
    trajectory = ponder.Trajectory(outputs, None, rows, labels=torch.zeros(40).long(), task="classification")
    for budget, step in ((1.5, 1), (2.5, 2), (3.5, 3)):
        chosen = ponder.calibrate(trajectory, [policies.Confidence, policies.Margin], at_most_steps=budget)
        assert chosen.policy == policies.FixedStep(step)
        found = ponder.diagnose(trajectory, [policies.Confidence], speedups=(4 / budget,), samples=40)
        assert chosen.point.score == pytest.approx(found.scores[step - 1])
        assert found.frontiers["blind"].mixed(budget) == pytest.approx(0.4 + (budget - 1) / 6)
        assert chosen.point.score < found.frontiers["blind"].mixed(budget)


def test_each_family_pays_for_what_it_reads() -> None:
    """The trap: costs of looking at every output, charged to `FixedStep` too, which looks at nothing."""
    trajectory = record(0, knows=False)
    cost = ponder.cost.Cost(stem=0, steps=(100,) * 5, readouts=(0,) * 5, heads=(100,) * 5)
    scores = trajectory.correct().double().mean(0)
    families, blind = [policies.Confidence, policies.Patience], cost.cumulative(policies.FixedStep.needs)
    for budget in (0.4, 0.6, 0.9):
        found = ponder.calibrate(trajectory, families, at_most_cost=budget, costs=cost.cumulative, full_cost=1.0)
        assert found.point.score >= float(scores[blind <= budget].max()) - 1e-12
        fresh = record(1, knows=False)
        left = fresh.replay(found.policy).exit_step
        mean = cost.cumulative(found.policy.needs)[left - 1].mean()
        assert found.evaluate(fresh).cost == pytest.approx(float(mean))
    fixed = ponder.calibrate(trajectory, families, at_least=0.9, costs=cost.cumulative, full_cost=1.0)
    assert fixed.policy == policies.FixedStep(int((scores >= 0.9 * scores[-1]).nonzero()[0]) + 1)
    with refused("full_cost", "full_cost=1.0"):
        ponder.calibrate(trajectory, families, at_least=0.9, costs=cost.cumulative)


def test_the_best_family_is_taken_and_named() -> None:
    trajectory = record(0)
    found = ponder.calibrate(trajectory, [policies.Confidence, policies.Patience], at_most_steps=3.5)
    alone = ponder.calibrate(trajectory, policies.Confidence, at_most_steps=3.5)
    assert found.policy == alone.policy
    assert found.point == alone.point
    assert found.statement.startswith("Confidence, the best of 3 families, best with a mean exit step of at most 3.5")
    cheap = ponder.calibrate(trajectory, [policies.FixedStep, policies.Confidence], at_least=0.9)
    assert cheap.point.cost <= ponder.calibrate(trajectory, policies.FixedStep, at_least=0.9).point.cost
    assert "the best of 2 families" in cheap.statement


def test_where_nothing_is_gained_the_choice_that_looks_at_nothing_is_kept() -> None:
    trajectory = record(1)
    same = trajectory.outputs[:, -1:].expand(-1, 5, -1).contiguous()
    trajectory = ponder.Trajectory(same, None, trajectory.row_ids, labels=trajectory.labels, task="classification")
    found = ponder.calibrate(trajectory, [policies.Confidence], at_least=1.0)
    assert found.policy == policies.FixedStep(1)


def test_a_policy_around_one_with_a_threshold_is_tried_with_that_one_moved() -> None:
    trajectory = record(3)
    late, tempered = policies.Confidence(0.5).after(2), policies.Tempered(policies.Margin(0.5), (2.0,) * 5)
    for policy in (late, tempered, policies.Confidence(0.5) | policies.LastStep()):
        found = ponder.control_risk(trajectory, policy, level=0.2, risk="disagreement")
        assert found.met
        assert type(found.policy.policy) is type(policy)
        curve, by_hand = (
            trajectory.sweep(policy, [0.6, 0.9]),
            trajectory.sweep(lambda value, policy=policy: _moved(policy, value), [0.6, 0.9]),
        )
        assert curve.to_dict() == by_hand.to_dict()
    among = ponder.calibrate(trajectory, [late, tempered], at_most_steps=3.5)
    assert among.met
    assert "best of 3 families" in among.statement
    for refused_one in (policies.Confidence(0.5) | policies.Margin(0.5), found.policy):
        with refused("policies", "a policy with a threshold", "Say what differs"):
            ponder.control_risk(trajectory, refused_one, level=0.2, risk="disagreement")


def _moved(policy: policies.ExitPolicy, value: float) -> policies.ExitPolicy:
    """The policy with the threshold of what is inside at a value, written out."""
    if isinstance(policy, policies.PolicyWrapper):
        return dataclasses.replace(policy, policy=policy.policy.with_threshold(value))
    first, last = policy.parts()
    return first.with_threshold(value) | last


@pytest.mark.parametrize("leaves", ["above", "below"])
def test_a_statistic_beyond_the_range_that_a_class_declares_is_told(leaves: str) -> None:
    """Trap: a good policy was judged bad, and nothing said that no threshold was tried under which rows stay."""
    sign = 1.0 if leaves == "above" else -1.0

    @dataclass(frozen=True)
    class Margin(policies.ThresholdPolicy):
        threshold: float = 0.0
        needs, tunable = frozenset({"output"}), policies.Threshold("threshold", leaves, low=-1.0)

        def statistic(self, step: Any, state: Any) -> Any:
            first, second = step.output.topk(2).values.unbind(1)
            return sign * 4.0 * (first - second), state

    @dataclass(frozen=True)
    class Declared(Margin):
        tunable = policies.Threshold("threshold", leaves, low=-99.0, high=99.0)

    trajectory = record(3)
    for judge in (
        lambda like: trajectory.sweep(like),
        lambda like: ponder.calibrate(trajectory, like, at_least=0.99),
        lambda like: ponder.control_risk(trajectory, like, level=0.05, risk="disagreement"),
        lambda like: ponder.diagnose(trajectory, compare=[like], samples=40),
    ):
        end = "above 1" if leaves == "above" else "below -1"
        with pytest.warns(UserWarning, match=f"Margin: the statistic of [0-9]+% of the rows is {end}, the last"):
            judge(Margin)
        judge(Declared)
    trajectory.sweep(Margin, [-1.0, 1.0])  # nobody but the caller says which values
    trajectory.sweep(Declared(0.5).before(3))  # of which all rows leave by step 3, whatever the threshold is
    with pytest.warns(UserWarning, match="Margin: the statistic of"):
        trajectory.sweep(Margin(0.5).before(3))


def test_no_families_and_a_common_grid_are_refused() -> None:
    with refused("policies", "none"):
        ponder.calibrate(record(0), [], at_least=0.9)
    with refused("grid"):
        ponder.calibrate(record(0), [policies.Confidence], at_least=0.9, grid=[0.1, 0.2])


def test_a_callable_among_several_is_refused_with_what_can_be_done() -> None:
    """The trap: the error asked for a grid, which is refused beside a list."""

    def family(threshold: float) -> policies.ExitPolicy:
        return policies.Confidence(threshold) | policies.Patience(3)

    with refused("policies", "family", "by itself", "with grid="):
        ponder.calibrate(record(0), [family], at_least=0.9)
    with refused("policies", "Any_", "by itself", "with grid="):
        ponder.calibrate(record(0), [family(0.5)], at_least=0.9)
    assert len(ponder.calibrate(record(0), family, at_least=0.9, grid=[0.1, 0.5]).curve) == 2
    with refused("policies", "'confidence'", type_error=True):
        ponder.calibrate(record(0), "confidence", at_least=0.9)
