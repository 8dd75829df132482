"""Sweeps, calibrations and certificates against plain NumPy, MAPIE as a second oracle, and a thousand redraws."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from mapie.risk_control.fwer_control import FWERFixedSequenceTesting
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from scipy.stats import binom

import ponder
from ponder import policies
from ponder.statistics.bounds import rows_needed
from tests import toys
from tests.matrices import cases, oracles
from tests.matrices.cases import random_trajectory

Array = np.ndarray[Any, Any]
POPULATION = 4000
STEPS = 4
CLASSES = 3


# -- records and their numbers, in NumPy -----------------------------------------------------------------------------


@cache
def population() -> Any:
    """Rows that later steps answer better, with logits in quarters, so that many tie, and 3% NaN."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, CLASSES, POPULATION)
    drift = np.eye(CLASSES)[labels][:, None] * np.arange(1, STEPS + 1)[:, None] * 0.9
    outputs = np.round(4 * (drift + 1.1 * rng.standard_normal((POPULATION, STEPS, CLASSES)))) / 4
    outputs[rng.random(POPULATION) < 0.02, 0] = np.nan
    outputs[rng.random(POPULATION) < 0.01] = np.nan
    hazards = np.round(rng.standard_normal((POPULATION, STEPS)) + 0.5 * np.arange(STEPS), 1)
    return ponder.Trajectory(
        outputs=torch.tensor(outputs, dtype=torch.float32),
        hazard_logits=torch.tensor(hazards, dtype=torch.float32),
        row_ids=torch.arange(POPULATION),
        labels=torch.tensor(labels),
        task="classification",
    )


def rows_at(trajectory: Any, rows: Array) -> Any:
    """The record of some rows, each of an id of its own."""
    at = torch.as_tensor(rows)
    fields = {
        name: getattr(trajectory, name)[at] for name in ("outputs", "hazard_logits", "labels")
    }
    return dataclasses.replace(trajectory, **fields, row_ids=torch.arange(len(at)))


def answers(trajectory: Any) -> Array:
    """The class of every row and step; −1 where there is none."""
    outputs = trajectory.outputs.double().numpy()
    return np.where(np.isnan(outputs).any(-1), -1, outputs.argmax(-1))


def losses(trajectory: Any, risk: str) -> Array:
    """What each row loses should it leave at each step; rows without an answer are wrong."""
    given = answers(trajectory)
    if risk == "disagreement":
        lost = ((given != given[:, -1:]) | (given < 0)).astype(float)
        lost[:, -1] = 0.0  # full depth agrees with itself
        return lost
    wrong = (given != trajectory.labels.numpy()[:, None]).astype(float)
    return wrong if risk == "error" else wrong - wrong[:, -1:]


def exits(trajectory: Any, family: Any, value: float) -> Array:
    """Where each row leaves under a threshold, by a loop of its own."""
    outputs = trajectory.outputs.double()
    hazards = trajectory.hazard_logits.double()
    p = outputs.softmax(-1)
    alive = torch.sigmoid(-hazards).cumprod(1)
    statistics = {
        policies.Confidence: p.amax(-1),
        policies.Entropy: -torch.special.entr(p).sum(-1),
        policies.Quantile: 1 - alive,
    }
    bar = -value if family is policies.Entropy else value
    leaves = (statistics[family] > bar).numpy()
    leaves[:, -1] = True
    return leaves.argmax(1) + 1


def mapies(risks: Array, rows: int, level: float) -> Array:
    """MAPIE's p-values; a hair below the risk, since it rounds n R up where that is whole but for rounding."""
    return compute_hoeffding_bentkus_p_value(risks * (1 - 1e-12), rows, level)[:, 0].clip(max=1.0)


def p_value(lost: Array, level: float, bound: str) -> float:
    """The p-value of "the mean loss is above the level"."""
    rows = len(lost)
    risk = lost.mean()
    if bound == "exact_binomial":
        return float(binom.cdf(round(lost.sum()), rows, level))
    if bound == "hoeffding_bentkus":
        return float(mapies(np.array([risk]), rows, level)[0])
    assert bound == "conformal"
    return (rows * risk + 1) / (rows + 1)


BOUNDS = ("hoeffding_bentkus", "exact_binomial")
FAMILIES = (policies.Confidence, policies.Entropy, policies.Quantile)
GRIDS = {
    policies.Confidence: [0.999, 0.97, 0.9, 0.8, 0.7, 0.55, 0.4],
    policies.Entropy: [0.01, 0.1, 0.25, 0.45, 0.65, 0.85, 1.05],
    policies.Quantile: [0.99, 0.9, 0.8, 0.65, 0.5, 0.3, 0.1],
}
"""Thresholds from late exits to early ones, none of which a statistic equals."""
RISKS = ("disagreement", "error", "error_gap")


# -- sweeps and calibrations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sweep_is_a_replay_of_every_threshold(family: Any) -> None:
    trajectory = rows_at(population(), np.arange(500))
    costs = [1.0, 1.5, 4.0, 5.0]
    curve = trajectory.sweep(family, GRIDS[family], costs=costs)
    given = answers(trajectory)
    labels = trajectory.labels.numpy()
    rows = np.arange(500)
    for point, value in zip(curve.points, GRIDS[family], strict=True):
        steps = exits(trajectory, family, value)
        assert trajectory.replay(family(value)).exit_step.tolist() == steps.tolist()
        chosen = given[rows, steps - 1]
        agrees = 1 - losses(trajectory, "disagreement")[rows, steps - 1]
        assert point.threshold == value
        assert point.mean_exit_step == pytest.approx(steps.mean())
        assert point.score == pytest.approx((chosen == labels).mean())
        assert point.agreement == pytest.approx(agrees.mean())
        assert point.cost == pytest.approx(np.array(costs)[steps - 1].mean() / costs[-1])
    full = curve.full_depth
    assert (full.mean_exit_step, full.cost, full.agreement) == (STEPS, 1.0, 1.0)
    assert full.score == pytest.approx((given[:, -1] == labels).mean())


COMBINED = [
    (policies.Confidence(0.5) | policies.Patience(2)),
    (policies.Patience(1) & policies.Margin(0.5)).after(2),
    policies.Energy(0.9).before(3),
    policies.Patience(1),
    policies.Voting(2),
    policies.FixedStep(1),
    cases.Settled(1.0),
]


@pytest.mark.parametrize("policy", COMBINED, ids=cases.name)
def test_a_threshold_inside_a_combination_is_swept_as_replays_of_it(
    policy: policies.ExitPolicy,
) -> None:
    trajectory = random_trajectory("classification", 80, 6, 1.0, 0)
    trajectory = dataclasses.replace(
        trajectory, features=trajectory.outputs, labels=torch.arange(80) % 3
    )
    moved = next(leaf for leaf in cases.leaves(policy) if leaf.tunable is not None)
    tunable = moved.tunable
    assert tunable is not None
    values = [1, 2, 3] if tunable.whole else [0.2, 0.5, 0.8]

    def at(value: float, whole: policies.ExitPolicy = policy) -> policies.ExitPolicy:
        if whole is moved:
            return moved.with_threshold(value)
        if hasattr(whole, "policies"):
            return dataclasses.replace(
                whole, policies=tuple(at(value, part) for part in whole.policies)
            )
        return (
            dataclasses.replace(whole, policy=at(value, whole.policy))
            if hasattr(whole, "policy")
            else whole
        )

    alone = len([leaf for leaf in cases.leaves(policy) if leaf.tunable is not None]) == 1
    curve = trajectory.sweep(policy if alone else at, values)
    for point, value in zip(curve.points, values, strict=True):
        steps = trajectory.replay(at(value)).exit_step.double()
        assert point.mean_exit_step == pytest.approx(float(steps.mean())), value


@pytest.mark.parametrize("family", FAMILIES)
def test_calibration_takes_the_best_threshold(family: Any) -> None:
    trajectory = rows_at(population(), np.arange(400))
    curve = trajectory.sweep(family, GRIDS[family])
    scores, steps = (
        [getattr(point, each) for point in curve.points] for each in ("score", "mean_exit_step")
    )
    for share in (0.9, 0.99):
        found = ponder.calibrate(trajectory, family, at_least=share, grid=GRIDS[family])
        fit = [
            n
            for n, score in zip(steps, scores, strict=True)
            if score >= share * curve.full_depth.score - 1e-9
        ]
        assert found.met
        assert found.point.mean_exit_step == pytest.approx(min(fit))
    for most in (1.5, 3.0):
        found = ponder.calibrate(trajectory, family, at_most_steps=most, grid=GRIDS[family])
        fit = [score for n, score in zip(steps, scores, strict=True) if n <= most + 1e-9]
        assert found.met is bool(fit)
        assert found.point.score == pytest.approx(max(fit) if fit else curve.full_depth.score)
        assert fit or isinstance(found.policy, policies.LastStep)


def by_step(right: list[float], rows: int = 40) -> Any:
    """A record in which each step is right on a share of the rows."""
    labels = torch.zeros(rows, dtype=torch.long)
    outputs = torch.zeros(rows, len(right), 2)
    for step, share in enumerate(right):
        outputs[:, step, 1] = 3.0
        outputs[: round(share * rows), step] = torch.tensor([3.0, 0.0])
    return ponder.Trajectory(
        outputs=outputs,
        hazard_logits=None,
        row_ids=torch.arange(rows),
        labels=labels,
        task="classification",
    )


@pytest.mark.parametrize(
    ("right", "costs", "target", "step"),
    [
        (
            [0.5, 0.9, 0.9, 1.0],
            [1.0, 1.0, 1.0, 2.0],
            {"at_least": 0.5},
            (2, 3),
        ),  # of equal costs the best score
        ([0.9, 0.6, 0.9, 1.0], [1.0, 1.0, 1.5, 2.0], {"at_least": 0.5}, (1,)),
        ([0.5, 0.9, 0.9, 1.0], None, {"at_most_steps": 3}, (2,)),  # of equal scores the least cost
        ([0.9, 0.9, 0.7, 1.0], [1.0, 1.0, 1.5, 2.0], {"at_most_steps": 2.0}, (1, 2)),
        ([0.5, 0.8, 0.8, 0.8], [1.0, 2.0, 2.0, 2.0], {"at_most_steps": 4.0}, (2, 3, 4)),
        ([0.5, 0.6, 0.7, 1.0], None, {"at_least": 0.99}, (4,)),
    ],
)
def test_points_of_equal_cost_or_score(
    right: list[float], costs: list[float] | None, target: dict[str, float], step: tuple[int, ...]
) -> None:
    found = ponder.calibrate(by_step(right), policies.FixedStep, costs=costs, **target)
    assert found.policy.step in step
    several = ponder.calibrate(by_step(right), [policies.FixedStep], costs=costs, **target)
    assert several.point.score == found.point.score
    assert several.point.cost == found.point.cost


# -- certificates against plain NumPy and MAPIE ----------------------------------------------------------------------


def certified(
    trajectory: Any, family: Any, risk: str, level: float, delta: float, bound: str
) -> tuple[float, ...]:
    """Threshold, mean exit step and p-value of the cheapest value that passes; N alone where none does."""
    lost = losses(trajectory, risk)
    rows = np.arange(len(trajectory))
    taken = np.full(1, -np.inf)
    passed = []
    lost = lost.clip(min=0.0)
    for value in GRIDS[family]:
        steps = exits(trajectory, family, value)
        here = lost[rows, steps - 1]
        if bound == "conformal":  # a row loses at least what it has lost at values before
            taken = np.maximum(taken, here)
            here = taken
        p = p_value(here, level, bound)
        if p > (level if bound == "conformal" else delta):
            break
        passed.append((value, float(steps.mean()), p))
    return min(reversed(passed), key=lambda each: each[1], default=(float(STEPS),))


@pytest.mark.parametrize("bound", [*BOUNDS, "conformal"])
@pytest.mark.parametrize("risk", RISKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_certificates_equal_a_plain_loop(family: Any, risk: Any, bound: str) -> None:
    chosen = set()
    for seed, level in ((0, 0.03), (1, 0.08), (2, 0.15), (3, 0.3), (4, 0.45)):
        trajectory = rows_at(
            population(), np.random.default_rng(seed).choice(POPULATION, 300, replace=False)
        )
        found = ponder.control_risk(
            trajectory,
            family,
            risk=risk,
            level=level,
            confidence=0.9,
            bound=bound,
            grid=GRIDS[family],
        )
        expected = certified(trajectory, family, risk, level, 0.1, bound)
        chosen.add(expected[0])
        policy = found.policy
        made = found.certificate
        assert found.met is (len(expected) > 1)
        assert (made.risk, made.level, made.bound, made.rows) == (risk, level, bound, 300)
        if not found.met:
            assert found.mean_exit_step == STEPS
            assert trajectory.replay(policy).exit_step.unique().tolist() == [STEPS]
            continue
        value, mean, p = expected
        assert made.threshold_value == value
        assert found.mean_exit_step == pytest.approx(mean)
        assert (
            made.p_value is None
            if bound == "conformal"
            else made.p_value == pytest.approx(p, rel=1e-6)
        )
        assert (
            trajectory.replay(policy).exit_step.tolist()
            == exits(trajectory, family, value).tolist()
        )
    assert len(chosen) > 1


def lossy(lost: Array) -> Any:
    """A record whose answers are its losses, `(rows, steps)` in [0, 1]."""
    outputs = torch.tensor(lost, dtype=torch.float64).unsqueeze(-1)
    labels = torch.zeros(len(lost), 1, dtype=torch.float64)
    ids = torch.arange(len(lost))
    return ponder.Trajectory(
        outputs=outputs, hazard_logits=None, row_ids=ids, labels=labels, task="regression"
    )


def as_answered(outputs: Any, labels: Any) -> Any:
    """The risk of a record whose answers are its losses."""
    return outputs[:, 0]


def path_of(lost: Array, level: float, bound: str) -> list[tuple[float, float, float]]:
    """What was tested, step by step from the last: step, empirical risk, p-value."""
    found = ponder.control_risk(
        lossy(lost), policies.FixedStep, risk=as_answered, level=level, bound=bound
    )
    return [tuple(each) for each in found.certificate.path]


@pytest.mark.parametrize("level", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("seed", range(4))
def test_p_values_and_the_fixed_sequence_are_mapies(level: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rates = level * np.linspace(1.4, 0.0, 6)
    lost = (rng.random((256, 6)) < rates) * rng.integers(1, 5, (256, 6)) / 4
    risks = lost[:, ::-1].mean(0)
    expected = mapies(risks, 256, level)
    path = path_of(lost, level, "hoeffding_bentkus")
    for place, (step, risk, p) in enumerate(path):
        assert step == 6 - place
        assert risk == pytest.approx(risks[place])
        assert p == pytest.approx(expected[place], rel=1e-6)
    passed = list(FWERFixedSequenceTesting().run(expected, 0.05))
    assert [place for place, each in enumerate(path) if each[2] <= 0.05] == passed
    assert len(path) == min(len(passed) + 1, 6)


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_bounds_are_ordered_and_monotone(level: float) -> None:
    rng = np.random.default_rng(3)
    lost = (rng.random((200, 2)) < level / 3).astype(float)
    lost[:, 1] = 0.0
    paths = {
        bound: path_of(lost, level, bound)
        for bound in ("exact_binomial", "hoeffding_bentkus", "betting")
    }
    exact, looser, _ = (path[0][2] for path in paths.values())
    assert exact == pytest.approx((1 - level) ** 200)
    assert exact <= looser
    for path in paths.values():
        assert path[0][2] <= path[1][2]  # more losses, less evidence


def test_the_betting_bound_of_equal_losses_equals_a_plain_loop() -> None:
    """The plug-in stakes of Waudby-Smith & Ramdas 2020, on rows whose order is nothing."""
    for loss, level, rows in ((0.0, 0.1, 50), (0.25, 0.4, 80), (0.5, 0.4, 30)):
        total = 0.0
        squares = 0.0
        capital = 0.0
        best = -math.inf
        before = 0.25
        for n in range(1, rows + 1):
            stake = min(math.sqrt(2 * math.log(20) / (rows * before)), 0.999 / (1 - level))
            total += loss
            squares += (loss - (0.5 + total) / (n + 1)) ** 2
            before = (0.25 + squares) / (n + 1)
            capital += math.log1p(stake * (level - loss))
            best = max(best, capital)
        p = path_of(np.full((rows, 1), loss), level, "betting")[0][2]
        assert p == pytest.approx(min(1.0, math.exp(-best)), rel=1e-6)


def test_the_betting_bound_is_a_valid_test() -> None:
    """At a mean that equals the level, a p-value of at most δ comes in at most δ of the redraws."""
    rng = np.random.default_rng(5)
    delta = 0.1
    level = 0.2
    redraws = 150
    small = 0
    for _ in range(redraws):
        lost = np.where(rng.random((120, 1)) < 0.4, 0.5, 0.0)
        small += path_of(lost, level, "betting")[0][2] <= delta
    assert small / redraws <= delta + 3 * math.sqrt(delta * (1 - delta) / redraws)


def test_a_conformal_promise_takes_the_worst_so_far() -> None:
    """A row is taken to lose at least what it lost at later exits, which makes the risk monotone."""
    lost = np.zeros((100, 4))
    lost[:10, 2], lost[20:30, 1], lost[:2, 0] = 1.0, 1.0, 1.0
    worst = [0, 10, 20, 20]
    path = path_of(lost, 0.3, "conformal")
    assert [each[2] for each in path] == pytest.approx([(count + 1) / 101 for count in worst])
    assert [each[1] for each in path] == pytest.approx([0.0, 0.1, 0.1, 0.02])


def test_a_gain_on_a_row_is_no_money_but_for_bets() -> None:
    trajectory = by_step([1.0, 0.5])  # the first step is right wherever the last is, and more often
    for bound in ("hoeffding_bentkus", "betting"):
        found = ponder.control_risk(
            trajectory, policies.FixedStep, risk="error_gap", level=0.1, bound=bound, confidence=0.9
        )
        risks = {value: mean for value, mean, _ in found.certificate.path}
        assert risks[1] == pytest.approx(-0.5 if bound == "betting" else 0.0)


def test_the_cheapest_of_all_that_passed_is_chosen_the_last_of_equals() -> None:
    """Where a callable makes the policies, the order of its grid is no order of costs."""
    steps = {1: 4, 2: 2, 3: 3, 4: 2, 5: 4, 6: 1}
    trajectory = by_step([0.5, 1.0, 1.0, 1.0])
    found = ponder.control_risk(
        trajectory, lambda t: policies.FixedStep(steps[int(t)]), level=0.2, grid=sorted(steps)
    )
    assert [value for value, _, _ in found.certificate.path] == sorted(
        steps
    )  # the last is tested, and fails
    assert (found.certificate.threshold_value, found.mean_exit_step) == (4, 2.0)


@pytest.mark.parametrize("bound", ["hoeffding_bentkus", "exact_binomial"])
@pytest.mark.parametrize(("level", "confidence"), [(0.02, 0.95), (0.1, 0.9), (0.3, 0.99)])
def test_so_many_rows_are_needed(level: float, confidence: float, bound: str) -> None:
    rows = rows_needed(level, confidence)
    for count, met in ((rows, True), (rows - 1, False)):
        found = ponder.control_risk(
            lossy(np.zeros((count, 2))),
            policies.FixedStep,
            risk=as_answered,
            level=level,
            confidence=confidence,
            bound=bound,
        )
        assert found.met is met
        assert bool(str(found.statement))


# -- promises under redraws --------------------------------------------------------------------------------------------

DELTA = 0.1
ROWS = 200


@cache
def risk_at(family: Any, risk: str) -> dict[float, float]:
    """The true risk of every threshold, over the population."""
    lost = losses(population(), risk).clip(min=0.0)
    rows = np.arange(POPULATION)
    return {
        value: lost[rows, exits(population(), family, value) - 1].mean() for value in GRIDS[family]
    }


def levels(family: Any, risk: str) -> list[float]:
    """Just under the risk of a value in the middle, and of the first where that has one."""
    risks = list(risk_at(family, risk).values())
    return [
        level for level in (risks[3] - 1e-6, risks[0] - 1e-6, risks[2] + 0.02) if 0.01 < level < 1.0
    ]


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("risk", RISKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_promise_is_broken_in_no_more_redraws_than_it_says(
    family: Any, risk: str, bound: str
) -> None:
    """1,000 redraws of the plain loop, and the library gives what it gives on the first of them."""
    rng = np.random.default_rng(11)
    truth = risk_at(family, risk)
    whole = losses(population(), risk).clip(min=0.0)
    values = GRIDS[family]
    steps = np.stack([exits(population(), family, value) for value in values], axis=1)
    table = np.take_along_axis(whole, steps - 1, axis=1)
    counts = np.arange(ROWS + 1)
    passing = 0
    for level in levels(family, risk):
        exact = bound == "exact_binomial"
        p_of = binom.cdf(counts, ROWS, level) if exact else mapies(counts / ROWS, ROWS, level)
        broken = 0
        for redraw in range(1000):
            sample = rng.integers(0, POPULATION, ROWS)
            p = p_of[np.rint(table[sample].sum(0)).astype(int)]
            many = len(values) if (p <= DELTA).all() else int((p > DELTA).argmax())
            means = steps[sample].mean(0)[:many]
            chosen = values[many - 1 - int(means[::-1].argmin())] if many else None
            passing += many > 0
            broken += chosen is not None and truth[chosen] > level
            if redraw < 20:
                assert list(FWERFixedSequenceTesting().run(p, DELTA)) == list(range(many))
                found = ponder.control_risk(
                    rows_at(population(), sample),
                    family,
                    risk=risk,
                    level=level,
                    confidence=1 - DELTA,
                    bound=bound,
                    grid=values,
                )
                assert found.certificate.threshold_value == chosen
        assert broken / 1000 <= DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / 1000)
    assert passing  # a bound that never speaks would keep every promise


def test_rows_without_an_answer_count_as_errors() -> None:
    outputs = torch.tensor([5.0, 0.0]).expand(100, 3, 2).clone()
    outputs[:30, 0] = math.nan
    outputs[:10] = math.nan
    trajectory = ponder.Trajectory(
        outputs=outputs,
        hazard_logits=None,
        row_ids=torch.arange(100),
        labels=torch.zeros(100, dtype=torch.long),
        task="classification",
    )
    for risk, expected in (
        ("disagreement", {3: 0.0, 2: 0.1, 1: 0.3}),
        ("error", {3: 0.1, 2: 0.1, 1: 0.3}),
    ):
        found = ponder.control_risk(trajectory, policies.FixedStep, risk=risk, level=0.9)
        assert {int(value): mean for value, mean, _ in found.certificate.path} == pytest.approx(
            expected
        )
    assert trajectory.sweep(policies.FixedStep, [1, 2, 3]).to_dict()["score"] == pytest.approx(
        [0.7, 0.9, 0.9]
    )
    assert (
        trajectory.replay(policies.Confidence(0.5)).exit_step[:30].tolist() == [3] * 10 + [2] * 20
    )


@pytest.mark.parametrize("task", toys.TASKS)
def test_a_certificate_serves_every_task(task: str) -> None:
    made = toys.build(cases.KIND_OF_TASK[task], task)
    trajectory = made.unroll(labels=cases.labels_for(task))
    risk: Any = "disagreement"
    if task == "regression":
        risk = lambda outputs, labels: (abs(outputs - labels).sum(1) / 50).clip(0, 1)  # noqa: E731
    found = ponder.control_risk(
        trajectory, policies.Quantile(0.5), risk=risk, level=0.9, confidence=0.5
    )
    assert found.met
    exit_step = trajectory.replay(found.policy).exit_step
    assert exit_step.tolist() == made.call(policy=found.policy).exit_step.tolist()
    assert found.mean_exit_step == pytest.approx(float(exit_step.double().mean()))
    assert set(oracles.exits(found.policy.to_dict(), cases.rows_of(trajectory)[0])) >= {
        int(exit_step[0])
    }


@pytest.mark.slow
def test_a_thousand_certificates_of_the_library_itself() -> None:
    family = policies.Confidence
    risk = "disagreement"
    rng = np.random.default_rng(12)
    truth = risk_at(family, risk)
    level = list(truth.values())[3] - 1e-6
    broken = 0
    met = 0
    for _ in range(1000):
        sample = rows_at(population(), rng.integers(0, POPULATION, ROWS))
        found = ponder.control_risk(
            sample, family, level=level, confidence=1 - DELTA, grid=GRIDS[family]
        )
        value = found.certificate.threshold_value
        met += value is not None
        broken += value is not None and truth[value] > level
    assert met > 500
    assert broken / 1000 <= DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / 1000)
