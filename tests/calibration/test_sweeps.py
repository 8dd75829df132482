"""Sweeps against plain loops: exits by asking `decide` value by value, scores and costs as means."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ponder.calibration import calibrate, diagnose, sweep
from ponder.calibration.families import family_of
from ponder.calibration.sweeps import Ruler
from ponder.policies import (
    Confidence,
    Energy,
    Entropy,
    FixedStep,
    LastStep,
    Margin,
    Patience,
    Voting,
)
from ponder.tasks import task_named
from tests.calibration.records import ArrayRecord, record

FAMILIES: dict[str, Any] = {
    "confidence": Confidence,
    "margin": Margin,
    "energy": Energy,
    "entropy": Entropy,
    "normalised": Entropy(0.5, normalize=True),
    "patience": Patience,
    "voting": Voting,
    "fixed": FixedStep,
    "after": Confidence(0.5).after(3),
    "before": Margin(0.5).before(4),
    "after of any": (Confidence(0.5) | LastStep()).after(2),
}


@pytest.mark.parametrize("like", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exits_from_one_pass_equal_runs_of_every_policy(like: Any, dtype: Any) -> None:
    seen = record(80)
    seen.outputs = seen.outputs.astype(dtype)
    seen.outputs[3, 1] = np.nan
    seen.outputs[4] = 0.0  # confidence exactly 1/3, entropy exactly log 3
    family = family_of(like, None, seen)
    assert family.free is not None
    for places, steps in family.exit_steps(seen):
        for place, exits in list(zip(places, steps, strict=True))[::4]:
            assert exits.tolist() == seen.exit_steps(family.build(family.values[place])).tolist()


def test_ties_are_decided_as_a_run_decides_them() -> None:
    logits = np.log(np.array([[[0.9, 0.1], [0.5, 0.5]]], dtype=np.float32))
    seen = ArrayRecord(logits, labels=np.array([0]))
    at = float(Confidence(0.5).scores(seen)[0, 0])
    for value in (at, float(np.float32(0.9)), 0.9, math.nextafter(at, 1), math.nextafter(at, 0)):
        ((_, steps),) = family_of(Confidence, [value], seen).exit_steps(seen)
        assert steps[0].tolist() == seen.exit_steps(Confidence(value)).tolist()


def test_points_equal_plain_means() -> None:
    seen = record(200)
    costs = [1.0, 1.5, 4.0, 4.0, 10.0]
    curve = sweep(seen, Confidence, [0.4, 0.8, 0.99], costs=costs, full_cost=8.0)
    answers = seen.outputs.argmax(-1)
    for point in curve.points:
        exits = seen.exit_steps(Confidence(point.threshold))
        rows = list(enumerate(exits))
        assert point.score == pytest.approx(
            np.mean([answers[r, n - 1] == seen.labels[r] for r, n in rows])
        )
        assert point.agreement == pytest.approx(
            np.mean([answers[r, n - 1] == answers[r, -1] for r, n in rows])
        )
        assert point.mean_exit_step == pytest.approx(np.mean(exits))
        assert point.cost == pytest.approx(np.mean([costs[n - 1] / 8.0 for n in exits]))
        assert (
            point
            == Ruler(seen, costs=costs, full_cost=8.0).points(
                [point.threshold], exits[None], frozenset()
            )[0]
        )
    assert curve.full_depth.cost == 1.0
    assert curve.policy(1) == Confidence(0.8)
    assert list(curve.to_dict()) == ["threshold", "score", "mean_exit_step", "cost", "agreement"]


def test_costs_may_be_asked_for_by_what_a_policy_reads() -> None:
    asked = []

    def costs(needs: frozenset[str]) -> list[float]:
        asked.append(needs)
        return [1, 2, 3, 4, 5]

    sweep(record(30), FixedStep, costs=costs)
    sweep(record(30), Confidence, [0.5], costs=costs)
    assert {*asked} == {frozenset(), frozenset({"output"})}


def test_a_metric_that_is_no_mean_is_given_the_answers_at_the_exits() -> None:
    seen = record(120)

    def macro(outputs: Any, labels: Any) -> float:
        return float(
            np.mean([(outputs.argmax(-1) == labels)[labels == c].mean() for c in range(3)])
        )

    curve = sweep(seen, FixedStep, metric=macro)
    assert curve.metric == "macro"
    assert [point.score for point in curve.points] == pytest.approx(
        [macro(seen.outputs[:, n], seen.labels) for n in range(5)]
    )


def test_a_record_without_labels_has_no_score() -> None:
    seen = record(50)
    seen.labels = None
    assert all(
        math.isnan(point.score) and point.agreement <= 1 for point in sweep(seen, Margin).points
    )


def test_callables_and_grids() -> None:
    seen = record(60)
    both = sweep(seen, lambda q: Confidence(q) & Patience(1), [0.9, 0.5])
    assert both.threshold == "value"
    assert [point.mean_exit_step for point in both.points] == [
        seen.exit_steps(Confidence(q) & Patience(1)).mean() for q in (0.9, 0.5)
    ]
    for grid in ([], [0.5, 0.5], [0.1, 0.3, 0.2], [math.nan]):
        with pytest.raises(ValueError, match="grid: expected"):
            sweep(seen, Confidence, grid)
    for like in (LastStep, Confidence(0.5) | Margin(0.5), lambda q: Confidence(q)):
        with pytest.raises(ValueError, match="policies: expected"):
            sweep(seen, like)


def test_a_certificate_is_not_swept() -> None:
    from ponder.calibration import control_risk

    with pytest.raises(ValueError, match="policies: expected"):
        sweep(record(50), control_risk(record(50), Confidence, level=0.5).policy)


@pytest.mark.parametrize(
    ("target", "column", "best"),
    [({"at_least": 0.95}, "cost", min), ({"at_most_steps": 3.0}, "score", max)],
)
@pytest.mark.parametrize("like", [Confidence, Entropy, FixedStep, Patience])
def test_calibration_meets_its_target_best(
    target: dict[str, float], column: str, best: Any, like: Any
) -> None:
    seen = record(150)
    costs = [1.0, 2.0, 4.0, 8.0, 16.0]
    found = calibrate(seen, like, costs=costs, **target)
    full = found.curve.full_depth.score
    fits = {
        "at_least": lambda point, value: point.score >= value * full - 1e-9,
        "at_most_steps": lambda point, value: point.mean_exit_step <= value + 1e-9,
    }
    ((name, value),) = target.items()
    allowed = [point for point in found.curve.points if fits[name](point, value)]
    assert found.met == bool(allowed)
    if allowed:
        assert getattr(found.point, column) == best(getattr(point, column) for point in allowed)
        assert found.policy == found.curve.family.build(found.point.threshold)


def test_several_families_are_never_worse_than_a_fixed_step() -> None:
    seen = record(150)
    found = calibrate(seen, [Confidence, Patience], at_most_steps=2.5)
    fixed = calibrate(seen, FixedStep, at_most_steps=2.5)
    alone = [
        calibrate(seen, like, at_most_steps=2.5).point.score for like in (Confidence, Patience)
    ]
    assert found.point.score == max(fixed.point.score, *alone)
    assert found.statement.startswith(f"{type(found.policy).__name__}, the best of 3 families")


def test_sure_models_are_calibrated_between_their_own_scores() -> None:
    seen = record(200)
    seen.outputs = (
        seen.outputs * 40.0
    )  # all confidences lie between two values of the declared grid
    steps = {
        point.mean_exit_step
        for point in calibrate(seen, Confidence, at_most_steps=3.0).curve.points
    }
    assert len(steps) > len({point.mean_exit_step for point in sweep(seen, Confidence).points}) + 20


def test_evaluation_is_on_other_rows_of_the_same_model() -> None:
    seen = record(50, content_ids=True, row_ids=np.arange(50), weights="a")
    found = calibrate(seen, Confidence, at_most_steps=3.0)
    test = record(50, seed=1, content_ids=True, row_ids=np.arange(50, 100), weights="a")
    assert repr(found.evaluate(test)) == repr(
        Ruler(test).point(found.policy)
    )  # the threshold is NaN in both
    for other in (
        record(50, content_ids=True, row_ids=np.arange(25, 75), weights="a"),
        record(50, content_ids=True, row_ids=np.arange(50, 100), weights="b"),
        record(50, training=True),
    ):
        with pytest.raises(ValueError, match="test: expected"):
            found.evaluate(other)
    found.evaluate(record(50))  # ids that are positions say nothing


def test_patience_on_numbers_is_calibrated_by_its_tolerance() -> None:
    seen = record(60)
    seen.outputs = np.cumsum(
        np.random.default_rng(0).normal(size=(60, 5, 1)) / [[[1], [2], [4], [8], [16]]], axis=1
    )
    seen.labels = seen.outputs[:, -1, 0]
    seen.meaning = task_named("regression")
    seen.__post_init__()
    seen.score_table = lambda metric: -((seen.outputs[:, :, 0] - seen.labels[:, None]) ** 2)  # type: ignore[method-assign]
    found = calibrate(seen, Patience, at_most_steps=3.0)
    assert found.curve.threshold == "tolerance"
    steps = [point.mean_exit_step for point in found.curve.points]
    assert steps == sorted(steps, reverse=True)
    assert (steps[0], steps[-1]) == (pytest.approx(5.0, abs=0.05), 2.0)
    made = diagnose(seen)
    assert made.gains[0].policy.startswith("Patience(patience=1, tolerance=")
