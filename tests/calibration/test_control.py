"""Risk control against a plain fixed sequence, its statement in words, and the promise over many redraws."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ponder
from ponder.calibration import Missed, certify, control_risk
from ponder.calibration.certifying import _certified_cost, candidates, most_failures
from ponder.calibration.families import family_of
from ponder.calibration.risks import Risk, losses_of
from ponder.policies import Confidence, Entropy, FixedStep, LastStep, Margin, Patience
from ponder.statistics.bounds import BOUNDS, binomial_cdf, upper_bound
from tests.calibration.records import ArrayRecord, record


def absolute(outputs: Any, labels: Any) -> Any:
    return np.abs(outputs.argmax(-1) - labels) / 2.0


@dataclass(frozen=True)
class Late(Risk):
    name: str = "late"

    def losses(self, record: Any) -> Any:
        return np.tile(np.linspace(0.0, 1.0, record.num_steps)[::-1], (len(record), 1))


RISKS = {
    "disagreement": "disagreement",
    "error": "error",
    "gap": "error_gap",
    "callable": absolute,
    "own": Late(),
}


def plain(
    seen: ArrayRecord, policies: Any, losses: Any, level: float, bound: str, grid: list[float]
) -> Any:
    """Fixed-sequence testing, or conformal risk control, as in the papers; values from late exits to early ones."""
    rows = np.arange(len(seen))
    best = None
    worst = np.full(len(seen), -1.0)
    for value in grid:
        exits = seen.exit_steps(policies(value))
        at = losses[rows, exits - 1]
        if bound == "conformal":
            worst = np.maximum(worst, at)
            passes = (worst.sum() + 1) / (len(seen) + 1) <= level
        else:
            passes = BOUNDS[bound].p_values(at[:, None], level)[0] <= 0.05
        if not passes:
            break
        if best is None or exits.sum() <= best[1]:
            best = (value, exits.sum())
    return best


@pytest.mark.parametrize("risk", RISKS.values(), ids=RISKS)
@pytest.mark.parametrize("bound", ["hoeffding_bentkus", "betting", "exact_binomial", "conformal"])
@pytest.mark.parametrize(
    ("like", "late"), [(Confidence, True), (Entropy, False), (Patience, True), (FixedStep, True)]
)
def test_control_risk_is_the_plain_fixed_sequence(
    risk: Any, bound: str, like: Any, late: bool
) -> None:
    seen = record(250)
    if bound == "exact_binomial" and not isinstance(risk, str):
        return
    losses, _ = losses_of(risk, seen, -1.0 if bound == "betting" else 0.0)
    for level in (0.001, 0.15, 0.6):
        found = control_risk(seen, like, risk=risk, level=level, bound=bound)
        grid = [value for value in like.tunable.values(5, 3) if like is not Patience or value < 5]
        build = (lambda value: like(int(value))) if like in (Patience, FixedStep) else like
        best = plain(seen, build, losses, level, bound, grid[::-1] if late else grid)
        assert found.met == (best is not None)
        assert found.certificate.threshold_value == (None if best is None else best[0])
        exits = seen.exit_steps(found.policy)
        assert found.mean_exit_step == pytest.approx(exits.mean())
        assert found.observed == pytest.approx(losses[np.arange(250), exits - 1].mean())
        assert found.exit_shares == pytest.approx([(exits == n).mean() for n in range(1, 6)])
        if best is None:
            assert found.policy.policy == LastStep()


def test_the_cheapest_is_chosen_by_cost_and_not_by_step() -> None:
    seen = record(100, steps=3)
    seen.outputs[:] = np.array(
        [5.0, 0.0, 0.0]
    )  # full depth is agreed with everywhere, so every value passes
    exits = {0.0: [1, 3] * 50, 1.0: [2, 2] * 50}
    seen.exit_steps = lambda policy: np.array(exits[policy.threshold])  # type: ignore[method-assign]

    def chosen(**options: Any) -> Any:
        return control_risk(
            seen, lambda value: Confidence(value), grid=[0.0, 1.0], level=0.1, **options
        ).certificate

    assert chosen().threshold_value == 1.0  # the last of equal ones
    assert chosen(costs=[1.0, 5.0, 6.0]).threshold_value == 0.0
    assert chosen(costs=[1.0, 3.0, 6.0]).threshold_value == 1.0


def test_conformal_losses_never_fall_along_the_walk() -> None:
    """A value at which rows are right again would pass by itself: what was lost before still counts."""
    outputs = np.zeros((99, 3, 2))
    outputs[:, 0], outputs[:, 1], outputs[:, 2] = (
        [1.0, 0.0],
        [0.0, 0.2],
        [1.0, 0.0],
    )  # wrong at step 2 alone
    seen = ArrayRecord(outputs, labels=np.zeros(99, dtype=int))
    found = control_risk(seen, FixedStep, level=0.5, bound="conformal")
    assert found.certificate.threshold_value == 3
    assert [round(statistic, 2) for _, _, statistic in found.certificate.path] == [0.01, 1.0]


def test_values_behind_a_failure_are_not_looked_at() -> None:
    seen = record(200)
    path = control_risk(seen, Confidence, level=0.1).certificate.path
    assert [p <= 0.05 for _, _, p in path] == [True] * (len(path) - 1) + [False]


def test_gains_count_for_betting_alone() -> None:
    seen = record(300)
    low = {
        bound: losses_of("error_gap", seen, 0.0 if bound != "betting" else -1.0)[0].min()
        for bound in ("betting", "x")
    }
    assert low == {"betting": -1.0, "x": 0.0}


def test_missed_is_about_positive_rows_alone() -> None:
    seen = record(600)
    found = control_risk(seen, Margin, risk=Missed([1]), level=0.05, bound="exact_binomial")
    full = seen.outputs[:, -1].argmax(-1)
    positive = full == 1
    alone = record(600)
    alone.outputs = alone.outputs[positive]
    alone.labels = alone.labels[positive]
    alone.row_ids = alone.row_ids[positive]
    alone.__post_init__()
    same = control_risk(alone, Margin, level=0.05, bound="exact_binomial")
    assert [each[1:] for each in found.certificate.path] == [
        each[1:] for each in same.certificate.path
    ]
    assert found.certificate.rows == positive.sum() == len(alone)
    assert f"{positive.sum()} of 600 rows that count" in found.statement
    by_label = control_risk(
        seen, Margin, risk=Missed([1], "labels"), level=0.4, bound="exact_binomial"
    )
    labelled = seen.labels == 1
    assert by_label.certificate.rows == labelled.sum()
    risk = Missed([1], "labels")
    np.testing.assert_array_equal(risk.losses(seen), seen._answers() != seen.labels[:, None])
    seen.outputs[np.flatnonzero(~positive)[:5], -1] = np.nan
    assert Missed([1]).rows(seen).sum() == positive.sum() + 5  # rows without an answer count


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"level": 0.05},
            "and run the others to the last step: other answers than at full depth on at most 5% "
            "of rows like these, with 95% confidence (certified on 300 rows that chose nothing).",
        ),
        (
            {"level": 0.001},
            "300 rows are too few for this level even without a single loss: at least 2995 are "
            "needed. Every row runs to the last step.",
        ),
        (
            {"level": 0.001, "bound": "conformal"},
            "No promise of other answers than at full depth on at most 0.1% of rows like these, "
            "in the mean over draws of the rows that certify: 300 rows are too few for this level "
            "even without a single loss: at least 999 are needed",
        ),
        (
            {"level": 0.02, "risk": "error"},
            "No promise of wrong answers on at most 2% of rows like these, with 95% confidence: "
            "already at threshold = 1, tried first, the loss observed is 0.",
        ),
        (
            {"level": 0.5, "risk": "error", "bound": "conformal"},
            "that chose nothing). Draws that certify nothing count as 0.",
        ),
        ({"level": 0.2, "risk": "error_gap"}, ": more wrong answers than at full depth on at most"),
        ({"level": 0.01, "risk": Missed([0])}, "at least 299 are needed, some"),
        ({"level": 0.01, "risk": Missed([7])}, "0 of 300 rows that count are too few"),
        (
            {"level": 0.2, "risk": lambda outputs, labels: 0.0 * labels},
            ": a mean custom risk of at most 20% on rows like these, with 95% confidence",
        ),
    ],
)
def test_the_statement_says_what_is_promised_or_how_many_rows_it_takes(
    options: Any, words: str
) -> None:
    found = control_risk(record(300), Confidence, **options)
    assert words in found.statement
    assert found.met == (not found.statement.startswith("No promise"))
    assert found.statement.endswith(".")


def test_evaluation_measures_the_risk_on_other_rows() -> None:
    found = control_risk(record(300), Confidence, level=0.1, bound="betting", risk="error_gap")
    test = record(300, seed=1)
    risk, mean = found.evaluate(test)
    exits = test.exit_steps(found.policy)
    right = test.correct()
    rows = np.arange(300)
    assert risk == pytest.approx((right[:, -1].astype(float) - right[rows, exits - 1]).mean())
    assert mean == exits.mean()
    with pytest.raises(ValueError, match="test: expected"):
        found.evaluate(record(300, training=True))


def test_non_finite_rows_lose() -> None:
    seen = record(200)
    seen.outputs[:50, 0] = np.nan
    assert losses_of("disagreement", seen)[0][:50, 0].all()
    assert losses_of("error", seen)[0][:50, 0].all()


def test_losses_out_of_range_or_reduced_are_refused() -> None:
    for risk in (
        lambda outputs, labels: 2.0 + labels,
        lambda outputs, labels: labels[:5] * 0.0,
        "accuracy",
    ):
        with pytest.raises(ValueError, match="risk: expected"):
            control_risk(record(60), Confidence, risk=risk, level=0.1)


# Promises over many redraws: rows are drawn anew from a world whose true risks are known.

WORLD = record(8_000, steps=4, seed=9)
GRID = np.linspace(0.99, 0.4, 25).tolist()


def drawn(rng: Any, rows: int) -> ArrayRecord:
    places = rng.integers(len(WORLD), size=rows)
    return ArrayRecord(WORLD.outputs[places], labels=WORLD.labels[places])


@pytest.mark.parametrize(
    "bound", [None, "hoeffding_bentkus", "betting", "exact_binomial", "conformal"]
)
@pytest.mark.parametrize("risk", ["disagreement", "error_gap"])
def test_promises_are_broken_in_at_most_delta_of_1000_redraws(bound: str | None, risk: Any) -> None:
    rng = np.random.default_rng(0)
    level = 0.1
    low = -1.0 if bound == "betting" else 0.0
    losses = losses_of(risk, WORLD, low)[0]
    true = {None: losses[:, -1].mean()}
    for value in GRID:
        true[value] = losses[np.arange(len(WORLD)), WORLD.exit_steps(Confidence(value)) - 1].mean()
    risks = [
        true[
            control_risk(
                drawn(rng, 300), Confidence, risk=risk, level=level, bound=bound, grid=GRID
            ).certificate.threshold_value
        ]
        for _ in range(1000)
    ]
    if bound == "conformal":
        assert np.mean(risks) <= level + 0.002
    else:
        assert np.mean(np.array(risks) > level) <= 0.05 + 0.02
    assert np.mean(risks) > 0.3 * level  # and promises are worth something


@pytest.mark.parametrize(
    ("risk", "bound"),
    [
        ("disagreement", "exact_binomial"),
        ("error", "exact_binomial"),
        ("error_gap", "exact_binomial"),
        (Missed([1]), "exact_binomial"),
        (Late(), "hoeffding_bentkus"),
        (lambda outputs, labels: 0.1 * (outputs[..., 0] > 0), "hoeffding_bentkus"),
    ],
)
def test_losses_of_0_or_1_get_the_sharper_bound_unless_another_is_named(
    risk: Any, bound: str
) -> None:
    seen = record(400, steps=4)
    found, same, other = (
        control_risk(seen, Margin, risk=risk, level=0.2, bound=own)
        for own in (None, bound, "hoeffding_bentkus")
    )
    assert found.policy == same.policy
    assert found.certificate.bound == bound
    assert found.mean_exit_step <= other.mean_exit_step


def test_promises_hold_where_the_kind_was_chosen_on_the_way() -> None:
    rng = np.random.default_rng(1)
    level = 0.1
    broken = 0
    kinds = [(like, values[::2]) for like, values in candidates(WORLD)[::2]]
    losses = losses_of("disagreement", WORLD)[0]
    for _ in range(120):
        found = certify(drawn(rng, 150), drawn(rng, 250), kinds, level=level)
        risk = losses[np.arange(len(WORLD)), WORLD.exit_steps(found.policy) - 1].mean()
        broken += risk > level
    assert broken / 120 <= 0.05 + 0.06


def test_a_kind_is_chosen_by_what_samples_of_the_rows_would_certify() -> None:
    seen = record(60, steps=4)
    rng = np.random.default_rng(0)
    cost = np.array([1.0, 2.0, 5.0, 9.0])
    losses = (rng.random((60, 4)) < [0.02, 0.3, 0.1, 0.05]) * 1.0
    counts = rng.multinomial(80, np.full(60, 1 / 60), size=12).T.astype(float)
    family = family_of(Confidence, GRID, seen)
    for allowed in (-1, 0, 3, 12, 80):
        certified = []
        for sample in counts.T:
            best = cost[-1]
            for value in GRID:
                exits = seen.exit_steps(Confidence(value))
                if (losses[np.arange(60), exits - 1] * sample).sum() > allowed:
                    break
                best = min(best, (cost[exits - 1] * sample).sum() / sample.sum())
            certified.append(best)
        found = _certified_cost(seen, family, losses, cost, counts, np.full(12, allowed))
        assert found == pytest.approx(np.mean(certified))


def test_the_cheapest_kind_is_certified() -> None:
    kinds = [(FixedStep, [5.0, 4.0]), (Confidence, GRID), (FixedStep, [5.0])]
    found = certify(record(300), record(300, seed=1), kinds, level=0.1)
    assert type(found.policy.policy) is Confidence


def test_a_speed_up_is_certified_at_what_it_costs() -> None:
    choosing = record(400, seed=3)
    certifying = record(500, seed=4)
    found = certify(choosing, certifying, speed_up=2.0)
    assert found.met
    failures = round(found.observed * 500)
    assert found.certificate.level == upper_bound(failures, 500, 0.95)
    assert choosing.exit_steps(found.policy).mean() <= 5 / 2.0 + 1e-9
    dear = certify(choosing, certifying, speed_up=2.0, costs=[1, 10, 20, 30, 40])
    exits = choosing.exit_steps(dear.policy)
    assert np.array([1, 10, 20, 30, 40])[exits - 1].mean() <= 20.0 + 1e-9


def test_rows_of_the_choosing_side_do_not_certify() -> None:
    ids = {"content_ids": True, "row_ids": np.arange(200)}
    with pytest.raises(ValueError, match="certifying: expected"):
        certify(record(200, **ids), record(200, seed=1, **ids))


@pytest.mark.parametrize("rows", [50, 333])
def test_most_failures_is_the_largest_number_that_the_exact_test_allows(rows: int) -> None:
    for level in (0.01, 0.2):
        most = most_failures(rows, level, 0.95)
        assert binomial_cdf(rows, level)[most + 1] > 0.05
        assert most < 0 or binomial_cdf(rows, level)[most] <= 0.05


def test_few_python_calls() -> None:
    # Not what holds "ponder" in its path: a clone may be called so, with all libraries in it.
    package = f"{Path(ponder.__file__).parent}{os.sep}"
    seen = record(600, steps=6)
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(package)

    sys.setprofile(count)
    try:
        found = control_risk(seen, Confidence, level=0.05, bound="exact_binomial")
    finally:
        sys.setprofile(None)
    assert len(found.certificate.path) > 10
    assert calls <= 450
    assert seen.asked == 0
    assert math.isfinite(found.observed)


@pytest.mark.parametrize("bound", ["exact_binomial", "conformal"])
def test_blocks_of_thresholds_do_not_matter(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = np.random.default_rng(0).normal(
        size=(200, 5, 3)
    )  # answers get better and worse again
    found = control_risk(ArrayRecord(outputs), Confidence, level=0.3, bound=bound)
    kinds = candidates(WORLD)[:2]
    chosen = certify(drawn(np.random.default_rng(0), 100), WORLD, kinds, level=0.1)
    monkeypatch.setattr("ponder.calibration.families._CELLS", 1)
    again = control_risk(ArrayRecord(outputs), Confidence, level=0.3, bound=bound)
    assert (again.policy, again.exit_shares) == (found.policy, found.exit_shares)
    assert (
        certify(drawn(np.random.default_rng(0), 100), WORLD, kinds, level=0.1).policy
        == chosen.policy
    )


def test_a_certificate_names_the_weights() -> None:
    seen = record(200)
    seen.weights = "digest"
    found: Any = control_risk(seen, Confidence, risk="disagreement", level=0.3)
    assert found.certificate.weights == "digest"
