"""Sweeps: the same as replaying value by value, and as plain Python; families, metrics, costs, bad input."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ponder
from ponder import policies
from ponder.analysis.policy_grid import as_policy_grid, grids_of
from ponder.analysis.sweeps import measure, sweep
from ponder.policies import (
    Bernoulli,
    Certified,
    Confidence,
    Entropy,
    ExitPolicy,
    FixedStep,
    Margin,
    Patience,
    PolicyBatch,
    Quantile,
    Tempered,
    Voting,
)
from tests.ponder import oracles
from tests.ponder.checks import records, refused
from tests.ponder.examples import CERTIFICATE


def recorded(rows: int = 40, steps: int = 6, task: str = "classification", seed: int = 0) -> ponder.Trajectory:
    generator = torch.Generator().manual_seed(seed)
    width = {"classification": 3, "multilabel": 3, "regression": 1}[task]
    outputs = torch.randn(rows, steps, width, generator=generator).cumsum(1)
    labels = {
        "classification": torch.randint(3, (rows,), generator=generator),
        "multilabel": torch.randint(2, (rows, 3), generator=generator).float(),
        "regression": torch.randn(rows, generator=generator),
    }[task]
    hazards = torch.randn(rows, steps, generator=generator)
    return ponder.Trajectory(outputs, hazards, torch.arange(rows), features=outputs, labels=labels, task=task)


GRIDS: dict[str, tuple[Any, list[float] | None]] = {
    "quantile": (Quantile, None),
    "quantile, falling": (Quantile, [0.9, 0.5, 0.1]),
    "entropy": (Entropy, None),
    "entropy, normalised": (Entropy(0.5, normalize=True), None),
    "confidence": (Confidence, None),
    "margin": (Margin, [0.0, 0.3, 1.0]),
    "patience": (Patience, None),
    "voting": (Voting, None),
    "fixed step": (FixedStep, None),
    "or": (lambda q: Quantile(q) | Patience(2), [0.2, 0.6, 0.9]),
    "and": (lambda c: (Patience(1) & Confidence(c)).after(2), [0.4, 0.7, 0.99]),
    "before": (lambda e: Entropy(e).before(4), [0.9, 0.5, 0.1]),
    "patience in a combination": (lambda t: Patience(int(t)) | Bernoulli(3), [1, 2, 3, 4]),
    "tempered": (lambda c: Tempered(Confidence(c), (0.5, 1.0, 2.0, 1.0, 1.0, 3.0)), [0.5, 0.8]),
    "certified": (lambda q: Certified(Quantile(q), path=(), **CERTIFICATE), [0.5, 0.8]),
    "two free": (lambda q: Quantile(q) | Confidence(q), [0.5, 0.8]),
    "unrelated": (lambda s: FixedStep(3) if s < 0.5 else Quantile(0.1), [0.1, 0.8]),
    "single": (Quantile, [0.5]),
}
ONE_PASS = set(GRIDS) - {"two free", "unrelated"}
every_grid = pytest.mark.parametrize("name", GRIDS)


@every_grid
def test_a_sweep_equals_replaying_value_by_value(name: str) -> None:
    trajectory, (like, grid) = recorded(), GRIDS[name]
    curve = trajectory.sweep(like, grid)
    made = as_policy_grid(like, grid, trajectory)
    assert (made.places(trajectory) is not None) == (name in ONE_PASS)
    steps = made.exit_steps(trajectory)
    assert len(curve) == len(made.values) == len(steps)
    for value, policy, point, taken in zip(made.values, curve.policies, curve.points, steps, strict=True):
        exits = trajectory.replay(policy)
        assert torch.equal(exits.exit_step, taken)
        assert point.threshold == value
        assert point.mean_exit_step == pytest.approx(exits.exit_step.double().mean().item(), abs=1e-12)
        right = exits.outputs.argmax(-1) == trajectory.labels
        assert point.score == pytest.approx(right.double().mean().item(), abs=1e-12)
        same = exits.outputs.argmax(-1) == trajectory.outputs[:, -1].argmax(-1)
        assert point.agreement == pytest.approx(same.double().mean().item(), abs=1e-12)
        assert point.cost == pytest.approx(point.mean_exit_step / 6, abs=1e-12)


@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([0.0, 1e-3, 0.37, 0.5, 1.0]))
def test_exits_equal_the_oracles(seed: int, steps: int, value: float) -> None:
    trajectory = recorded(5, steps, seed=seed)
    for like in (Quantile, Confidence, Margin, Entropy):
        policy = like(value)
        (taken,) = as_policy_grid(like, [value], trajectory).exit_steps(trajectory).tolist()
        for row, step in zip(records(trajectory), taken, strict=True):
            assert step in oracles.exits(policy.to_dict(), row)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks(task: str) -> None:
    trajectory = recorded(task=task)
    curve = trajectory.sweep(Quantile, [0.3, 0.6])
    for point, policy in zip(curve.points, curve.policies, strict=True):
        outputs = trajectory.replay(policy).outputs
        if task == "regression":
            assert curve.metric == "negative_squared_error"
            assert math.isnan(point.agreement)
            expected = -((outputs[:, 0] - trajectory.labels) ** 2).double().mean()
        else:
            assert curve.metric == "exact_match"
            expected = ((outputs > 0) == (trajectory.labels > 0.5)).all(1).double().mean()
        assert point.score == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("far_off", [1.0, 1e6, 1e12])
def test_what_early_steps_are_far_off_by_does_not_round_the_scores_of_later_ones(far_off: float) -> None:
    """The trap: in a sum that runs over the thresholds, what is far off hides the small errors for good."""
    trajectory = recorded(rows=200, task="regression")
    assert trajectory.labels is not None
    labels, errors = trajectory.labels.double(), torch.tensor([far_off, 1.0, 1e-3, 1e-4, 1e-5, 1e-6]).double()
    outputs = labels[:, None, None] + trajectory.outputs.double() * errors[:, None]
    trajectory = dataclasses.replace(trajectory, outputs=outputs, labels=labels)
    for like in (FixedStep, Quantile):
        assert as_policy_grid(like, None, trajectory).places(trajectory) is not None
        curve = trajectory.sweep(like)
        for point, policy in zip(curve.points, curve.policies, strict=True):
            squares = ((trajectory.replay(policy).outputs[:, 0] - labels) ** 2).tolist()
            assert point.score == pytest.approx(-math.fsum(squares) / 200, rel=1e-9)
            assert point.score == measure(trajectory, policy).score


def test_a_metric_of_the_users() -> None:
    trajectory = recorded()

    def first_class(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (outputs.argmax(-1) == 0).float().mean()

    curve = trajectory.sweep(Quantile, [0.2, 0.8], metric=first_class)
    assert curve.metric == "first_class"
    for point, policy in zip(curve.points, curve.policies, strict=True):
        assert point.score == pytest.approx(float(first_class(trajectory.replay(policy).outputs, trajectory.labels)))
    with refused("metric", "one number", type_error=True):
        trajectory.sweep(Quantile, [0.2], metric=lambda outputs, labels: [1.0, 2.0])


def test_labels_that_a_metric_alone_reads_are_its_own() -> None:
    """A class and a group for each row, under a task of classes, which would refuse them."""
    trajectory = recorded()
    assert trajectory.labels is not None
    both = torch.stack([trajectory.labels, torch.arange(len(trajectory.labels)) % 2], dim=1)

    def worst_group(outputs: torch.Tensor, labels: torch.Tensor) -> float:
        right = (outputs.argmax(-1) == labels[:, 0]).double()
        return min(float(right[labels[:, 1] == group].mean()) for group in (0, 1))

    told = dataclasses.replace(trajectory, labels=both, task="classification")
    [point] = told.sweep(Quantile, [0.5], metric=worst_group).points
    assert point.score == worst_group(told.replay(Quantile(0.5)).outputs, both)
    with refused("labels"):
        told.sweep(Quantile, [0.5])


def test_full_depth_and_one_policy() -> None:
    trajectory = recorded()
    curve = trajectory.sweep(Quantile, [0.5])
    assert curve.full_depth.mean_exit_step == 6
    assert curve.full_depth.cost == curve.full_depth.agreement == 1
    assert math.isnan(curve.full_depth.threshold)
    one = measure(trajectory, Quantile(0.5))
    assert (one.score, one.cost) == pytest.approx((curve.points[0].score, curve.points[0].cost))


def test_costs_are_relative_to_full_depth() -> None:
    trajectory = recorded()
    costs = [3.0, 4.0, 6.0, 8.0, 9.0, 12.0]
    curve = trajectory.sweep(FixedStep, costs=costs)
    assert [point.cost for point in curve.points] == pytest.approx([cost / 12 for cost in costs])
    for wrong in ([1.0] * 5, [0.0, 1, 2, 3, 4, 5], [2.0, 1.0, 3, 4, 5, 6]):
        with refused("costs", "6 positive numbers"):
            trajectory.sweep(FixedStep, costs=wrong)


def test_without_labels_there_is_no_score() -> None:
    trajectory = ponder.Trajectory(torch.randn(4, 3, 2), None, torch.arange(4))
    assert math.isnan(trajectory.sweep(Confidence, [0.5]).points[0].score)
    with refused("metric", "without"):
        trajectory.sweep(Confidence, [0.5], metric="accuracy")


def test_export(tmp_path: Any) -> None:
    curve = recorded().sweep(Patience)
    columns = curve.to_dict()
    assert set(columns) == {"threshold", "score", "mean_exit_step", "cost", "agreement"}
    assert columns["threshold"] == [1, 2, 3, 4, 5]
    curve.to_csv(tmp_path / "curve.csv")
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == columns["score"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ponder.PonderError, match="file"):
        curve.to_csv(tmp_path / "file" / "curve.csv")


def test_a_policy_of_a_strangers_is_swept() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Norm(policies.ThresholdPolicy):
        threshold: float
        needs = frozenset({"features"})
        tunable = policies.Threshold("threshold", "above", high=lambda num_steps, width: 10.0)

        def statistic(self, step: Any, state: Any) -> Any:
            return step.features.norm(dim=-1), state

    @dataclass(frozen=True)
    class Wrapped(ExitPolicy):  # says nothing of its parts: replayed value by value
        inside: ExitPolicy
        needs = frozenset({"features"})

        def init(self, batch: PolicyBatch) -> Any:
            return self.inside.init(batch)

        def decide(self, step: Any, state: Any) -> Any:
            return self.inside.decide(step, state)

    trajectory = recorded()
    swept = trajectory.sweep(Norm)
    slow = trajectory.sweep(lambda threshold: Wrapped(Norm(threshold)), swept.to_dict()["threshold"])
    assert swept.to_dict() == {key: pytest.approx(column) for key, column in slow.to_dict().items()}
    assert len({point.mean_exit_step for point in swept.points}) > 10


BAD: dict[str, tuple[Callable[[ponder.Trajectory], Any], str, str]] = {
    "unordered": (lambda t: t.sweep(Quantile, [0.1, 0.5, 0.3]), "grid", "strictly rising"),
    "twice the same": (lambda t: t.sweep(Quantile, [0.1, 0.1]), "grid", "strictly rising"),
    "nothing": (lambda t: t.sweep(Quantile, []), "grid", "at least one value"),
    "a callable without a grid": (lambda t: t.sweep(lambda q: Quantile(q)), "grid", "callable"),
    "no threshold": (lambda t: t.sweep(policies.LastStep), "policies", "LastStep"),
    "no threshold, a policy": (lambda t: t.sweep(Bernoulli(1)), "policies", "Bernoulli"),
    "a combination": (lambda t: t.sweep(Quantile(0.5) | Patience(2), [0.1]), "policies", "lambda q"),
    "a value out of range": (lambda t: t.sweep(Quantile, [0.5, 1.5]), "q", "1.5"),
    "another metric": (lambda t: t.sweep(Quantile, metric="f1"), "metric", "'f1'"),
    "no hazard": (lambda t: ponder.Trajectory(t.outputs, None, t.row_ids).sweep(Quantile), "policy", "Lambda"),
    "patience of N": (lambda t: t.sweep(Patience, [4, 5, 6]), "patience", "less than"),
    "no row": (lambda t: t.map(lambda tensor: tensor[:0]).sweep(Quantile), "trajectory", "none"),
}


@pytest.mark.parametrize("grid", [0.5, ["half"]], ids=["one number", "no numbers"])
def test_a_grid_without_numbers_is_refused(grid: Any) -> None:
    trajectory = recorded()
    with refused("grid", "expected numbers", type_error=True):
        trajectory.sweep(Quantile, grid)


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, argument, words = BAD[name]
    with refused(argument, words):
        call(recorded())


def test_what_is_no_policy_is_refused() -> None:
    for wrong in ("quantile", lambda q: q):
        with refused("policies", type_error=True):
            recorded().sweep(wrong, [0.1, 0.2])
    with refused("policies", "Pass a policy instead of its class", type_error=True):
        sweep(recorded(), policies.Learned)


@pytest.mark.parametrize("bounded", ["after 1", "after 3", "before 2", "before 5", "after 2, before 4", "both in or"])
@pytest.mark.parametrize("leaf", [Patience, Voting, FixedStep])
@pytest.mark.parametrize("outer", [None, Confidence(0.7), Patience(1)], ids=str)
def test_whole_numbers_are_swept_under_bounds(leaf: Any, bounded: str, outer: ExitPolicy | None) -> None:
    """The trap: −∞ among whole numbers is an overflow."""
    wrap: dict[str, Callable[[ExitPolicy], ExitPolicy]] = {
        "after 1": lambda policy: policy.after(1),
        "after 3": lambda policy: policy.after(3),
        "before 2": lambda policy: policy.before(2),
        "before 5": lambda policy: policy.before(5),
        "after 2, before 4": lambda policy: policy.after(2).before(4),
        "both in or": lambda policy: policy.after(3) | policy.before(5),
    }

    def build(value: float) -> ExitPolicy:
        inside = wrap[bounded](leaf(int(value)))
        return inside if outer is None else inside & outer

    trajectory, grid = recorded(), [1, 2, 3, 4]
    swept = trajectory.sweep(build, grid).to_dict()["mean_exit_step"]
    replayed = [trajectory.replay(build(value)).exit_step.double().mean().item() for value in grid]
    assert swept == pytest.approx(replayed, abs=1e-12)
    assert ponder.calibrate(trajectory, build, at_most_steps=6.0, grid=grid).met


@pytest.mark.parametrize("high", [3.0, 3, lambda num_steps, width: 3.0], ids=["float", "int", "callable"])
def test_a_threshold_ends_at_a_number_or_at_what_a_function_says(high: Any) -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Norm(policies.ThresholdPolicy):
        threshold: float
        needs = frozenset({"features"})
        tunable = policies.Threshold("threshold", "above", high=high)

        def statistic(self, step: Any, state: Any) -> Any:
            return step.features.norm(dim=-1).clamp(max=3.0), state

    trajectory = recorded()
    values = trajectory.sweep(Norm).to_dict()["threshold"]
    assert (values[0], values[-1]) == (0.0, 3.0)
    assert ponder.calibrate(trajectory, Norm, at_most_steps=6.0).met


@pytest.mark.parametrize("wrong", ["10", None, float("nan"), float("inf"), True, -1.0])
def test_a_threshold_that_ends_nowhere_is_refused_when_it_is_made(wrong: Any) -> None:
    with refused("high"):
        policies.Threshold("threshold", "above", high=wrong)


LATER: dict[str, tuple[Any, list[float], bool | None]] = {
    "q": (Quantile, [0.1, 0.9], True),
    "q, falling": (Quantile, [0.9, 0.1], False),
    "entropy": (Entropy, [0.1, 0.9], False),
    "steps": (FixedStep, [1, 2, 3], True),
    "one of several": (lambda q: (Quantile(q) | Patience(2)).after(2), [0.1, 0.9], True),
    "turned round": (lambda t: Quantile(1 - t) & Confidence(0.5), [0.1, 0.9], False),
    "two, one way": (lambda t: Quantile(t) | Entropy(1 - t), [0.1, 0.5, 0.9], True),
    "two, both ways": (lambda t: Quantile(t) | Entropy(t), [0.1, 0.9], None),
    "two kinds": (lambda t: Quantile(0.5) if t < 0.5 else Confidence(0.5), [0.1, 0.9], None),
    "to and fro": (lambda t: Quantile(abs(t - 0.5)), [0.1, 0.5, 0.8], None),
    "another field": (lambda t: Entropy(0.5, normalize=t > 0.5), [0.1, 0.9], None),
    "no threshold": (lambda t: Bernoulli(int(t)), [1, 2], None),
    "one alone": (Quantile, [0.5], None),
}


@pytest.mark.parametrize("name", LATER)
def test_which_way_a_grid_goes_is_told_by_the_policies(name: str) -> None:
    like, grid, later = LATER[name]
    for seed in (0, 1):
        made = as_policy_grid(like, grid, recorded(seed=seed))
        assert made.exits_get_later is later
        if later is not None:
            steps = made.exit_steps(recorded(seed=seed))
            assert bool((steps[1:] >= steps[:-1]).all() if later else (steps[1:] <= steps[:-1]).all())


def test_old_names_warn_and_work() -> None:
    curve = recorded().sweep(Quantile, [0.2, 0.8])
    with pytest.warns(DeprecationWarning, match=r"Curve.knob is called threshold"):
        assert curve.knob == curve.threshold == "q"
    with pytest.warns(DeprecationWarning, match=r"Point.knob is called threshold"):
        assert curve.points[0].knob == 0.2


def test_old_names_on_policies_warn_and_work() -> None:
    from dataclasses import dataclass, replace

    with pytest.warns(DeprecationWarning, match=r"Rounded.seen is called transform"):

        @dataclass(frozen=True)
        class Rounded(policies.PolicyWrapper):
            def seen(self, step: Any) -> Any:
                return replace(step, readings={"output": step.output.round()})

    with pytest.warns(DeprecationWarning, match=r"Norm.knob is called tunable"):

        @dataclass(frozen=True)
        class Norm(policies.ThresholdPolicy):
            threshold: float
            needs = frozenset({"features"})
            knob = policies.Threshold("threshold", "above", high=10.0)

            def statistic(self, step: Any, state: Any) -> Any:
                return step.features.norm(dim=-1), state

    trajectory = recorded()
    rounded = ponder.Trajectory(trajectory.outputs.round(), None, trajectory.row_ids)
    exits = trajectory.replay(Rounded(Confidence(0.8))).exit_step
    assert torch.equal(exits, rounded.replay(Confidence(0.8)).exit_step)
    assert not torch.equal(exits, trajectory.replay(Confidence(0.8)).exit_step)
    assert len(trajectory.sweep(Norm)) == 201


def test_a_curve_is_shown_in_a_line() -> None:
    curve = recorded().sweep(Quantile)
    assert repr(curve) == (
        f"Curve(201 values of q from 0 to 1, accuracy {min(curve.to_dict()['score']):.4g} to "
        f"{max(curve.to_dict()['score']):.4g})"
    )


def test_one_step_leaves_nothing_to_choose() -> None:
    curve = recorded(steps=1).sweep(Quantile, [0.1, 0.9])
    assert curve.to_dict()["mean_exit_step"] == [1, 1]


@dataclass(frozen=True)
class Later(policies.PolicyWrapper):
    """No exit before the third step, of which `readiness` knows nothing."""

    def decide(self, step: policies.StepView, state: Any) -> tuple[Any, Any]:
        mask, state = super().decide(step, state)
        return mask & (step.index >= 3), state


@dataclass(frozen=True)
class Hurried(policies.Confidence):
    """Leaves for another reason too, of which `readiness` knows nothing."""

    def decide(self, step: policies.StepView, state: Any) -> tuple[Any, Any]:
        mask, state = super().decide(step, state)
        return mask | (step.output.softmax(-1).amax(-1) > 0.4), state


@pytest.mark.parametrize(
    "like",
    [Hurried, lambda value: Later(policies.Confidence(value)), lambda value: Hurried(value) | policies.Patience(2)],
)
def test_a_class_that_decides_otherwise_than_it_inherits_is_replayed(like: Any) -> None:
    """One pass by the inherited readiness would certify another policy."""
    trajectory, grid = recorded(200), [0.3, 0.5, 0.7, 0.9]
    tried = as_policy_grid(like, grid, trajectory)
    replayed = torch.stack([trajectory.replay(policy).exit_step for policy in tried.policies])
    assert torch.equal(tried.exit_steps(trajectory), replayed)
    found = ponder.control_risk(trajectory, like, level=0.9, grid=grid)
    assert found.mean_exit_step == trajectory.replay(found.policy).exit_step.double().mean().item()


def test_a_class_that_refuses_in_its_own_way_is_swept_by_a_callable() -> None:
    """The values of a callable are tried as thresholds, which a class of a user's may not take."""

    @dataclass(frozen=True)
    class Percent(ExitPolicy):
        level: float
        needs, tunable = frozenset({"output"}), policies.Threshold("level", "above")

        def __post_init__(self) -> None:
            if not 0.0 <= self.level <= 1.0:
                raise ValueError("no share")

        def decide(self, step: Any, state: Any) -> Any:
            return step.output.softmax(-1).amax(-1) > self.level, state

    trajectory = recorded(100)
    curve = trajectory.sweep(lambda percent: Percent(percent / 100.0), [50.0, 90.0])
    as_shares = trajectory.sweep(Percent, [0.5, 0.9])
    assert (curve.threshold, as_shares.threshold) == ("value", "level")
    assert curve.to_dict()["mean_exit_step"] == as_shares.to_dict()["mean_exit_step"]


class Both(ExitPolicy):
    """A composite of a user's that is no dataclass."""

    needs = frozenset({"output"})

    def __init__(self, *policies: ExitPolicy) -> None:
        self.policies = policies

    def parts(self) -> tuple[ExitPolicy, ...]:
        return self.policies

    def init(self, batch: PolicyBatch) -> Any:
        return tuple(policy.init(batch) for policy in self.policies)

    def decide(self, step: Any, state: Any) -> Any:
        answers = [policy.decide(step, own) for policy, own in zip(self.policies, state, strict=True)]
        return answers[0][0] & answers[1][0], tuple(own for _, own in answers)


def test_a_composite_that_is_no_dataclass_is_tried_as_it_is_and_its_parts_are_not_moved() -> None:
    """Trap: a TypeError of `dataclasses`, from certificates and grids that compare their policies."""
    trajectory, grid = recorded(rows=200), [0.4, 0.6]
    made = as_policy_grid(lambda value: Both(Confidence(value), Patience(1)), grid, trajectory)
    assert made.exits_get_later is None
    expected = as_policy_grid(lambda value: Confidence(value) & Patience(1), grid, trajectory).exit_steps(trajectory)
    assert torch.equal(made.exit_steps(trajectory), expected)
    with refused("Both", "dataclass", type_error=True):
        list(grids_of(Both(Confidence(0.5), Patience(1)), trajectory, 5))


def test_a_callable_is_given_whole_numbers_as_such() -> None:
    trajectory = recorded()
    for grid in ([1, 2, 3], range(1, 4), np.arange(1, 4)):
        curve = sweep(trajectory, lambda count: Patience(count), grid)
        assert [point.threshold for point in curve.points] == [1.0, 2.0, 3.0]
        assert curve.policies == (Patience(1), Patience(2), Patience(3))
    assert sweep(trajectory, lambda value: Quantile(value), torch.linspace(0.25, 0.75, 3)).policies[1] == Quantile(0.5)


def test_what_is_inherited_for_all_rows_is_not_for_another_decision() -> None:
    class LastBut(policies.LastStep):
        needs = frozenset({"output"})

        def decide(self, step, state):
            return step.output.softmax(-1).amax(-1) > 0.4, state

    assert LastBut().exit_of_all(4) is None
    assert policies.LastStep().exit_of_all(4) == 4
    trajectory = recorded(50)
    assert trajectory.replay(LastBut()).exit_step.min() < trajectory.num_steps


def test_one_step_has_no_patience() -> None:
    with refused("policies", "for 1 steps", "Record more steps"):
        recorded(20, steps=1).sweep(policies.Patience)


def test_costs_are_relative_to_the_plain_model_where_that_is_told() -> None:
    # Trap: each policy was divided by its own last step, so that what it costs to look was free.
    trajectory = recorded(60)
    costs = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]  # to look costs twice as much as to go on
    own = trajectory.sweep(policies.Confidence, [0.4, 0.9], costs=costs)
    plain = trajectory.sweep(policies.Confidence, [0.4, 0.9], costs=costs, full_cost=1.0)
    assert [point.cost for point in plain.points] == pytest.approx([3.0 * point.cost for point in own.points])
    assert own.full_depth.cost == plain.full_depth.cost == 1.0
    steps = trajectory.replay(policies.Confidence(0.4)).exit_step
    assert plain.points[0].cost == pytest.approx(float(torch.tensor(costs)[steps - 1].mean()))
    found = ponder.calibrate(trajectory, policies.Confidence, at_most_cost=0.9, costs=costs, full_cost=1.0)
    assert found.point.cost <= 0.9
    assert found.evaluate(recorded(60, seed=5)).cost == pytest.approx(0.5)  # all leave at once
    with refused("full_cost", "-1"):
        trajectory.sweep(policies.Confidence, [0.4], costs=costs, full_cost=-1.0)


def test_costs_are_asked_for_what_the_policies_of_a_grid_read() -> None:
    trajectory, asked = recorded(60), []

    def costs(needs: frozenset[str]) -> list[float]:
        asked.append(needs)
        return [1.0, 2.0, 3.0, 4.0, 5.0, 6.0 + len(needs)]

    def family(value: float) -> policies.ExitPolicy:
        return policies.Confidence(value) if value < 0.5 else policies.Quantile(value)

    for like, needs in ((policies.FixedStep, set()), (policies.Quantile, {"hazard"}), (family, {"hazard", "output"})):
        grid = [2, 4] if like is policies.FixedStep else [0.4, 0.9]
        curve = trajectory.sweep(like, grid, costs=costs, full_cost=1.0)
        assert curve.to_dict() == trajectory.sweep(like, grid, costs=costs(needs), full_cost=1.0).to_dict()
        assert asked == [needs, needs]
        asked.clear()
    assert measure(trajectory, policies.Quantile(0.5), costs=costs).cost > 0
    assert asked == [{"hazard"}]
    with refused("costs", "6 positive numbers"):
        trajectory.sweep(policies.FixedStep, costs=lambda needs: [1.0, 2.0])


def test_a_metric_that_broadcasts_rows_against_all_labels_is_refused() -> None:
    # Trap: outputs (rows, 1) less labels (rows,) are (rows, rows), and the mean of that chose epochs and thresholds.
    trajectory = recorded(30, task="regression")
    trajectory = dataclasses.replace(trajectory, labels=trajectory.labels.reshape(-1))

    def broadcasts(outputs: torch.Tensor, labels: torch.Tensor) -> float:
        return -float(((outputs - labels) ** 2).mean())

    with refused("metric", "(30, 1)", "broadcasts"):
        trajectory.sweep(policies.FixedStep, [1, 3], metric=broadcasts)
    own = trajectory.sweep(policies.FixedStep, [1, 3], metric=lambda outputs, labels: broadcasts(outputs[:, 0], labels))
    theirs = trajectory.sweep(policies.FixedStep, [1, 3])
    assert [point.score for point in own.points] == pytest.approx([point.score for point in theirs.points])
