"""Diagnoses against brute force, and verdicts on worlds whose answer is known."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest

from ponder.calibration import diagnose
from ponder.calibration.diagnosing import Gain, _Tried, best_blind, best_most_expensive
from ponder.policies import Confidence, Margin
from tests.calibration.records import ArrayRecord, record


def test_the_best_blind_choice_is_a_step_or_a_coin_between_two() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        scores = rng.random(4)
        cost = np.cumsum(rng.random(4) + 0.1)
        at = float(rng.uniform(cost[0], cost[-1]))
        low, high, share = best_blind(scores, cost, at)
        assert (1 - share) * cost[low] + share * cost[high] <= at + 1e-9
        coins = [
            (1 - share) * scores[a] + share * scores[b]
            for a, b in itertools.product(range(4), range(4))
            for share in np.linspace(0, 1, 201)
            if (1 - share) * cost[a] + share * cost[b] <= at
        ]
        assert (1 - share) * scores[low] + share * scores[high] >= max(coins) - 1e-9


@pytest.mark.parametrize("costs", [None, [1.0, 1.2, 5.0, 6.0, 20.0]])
def test_every_number_of_a_diagnosis(costs: Any) -> None:
    seen = record(400)
    made = diagnose(seen, [Confidence, Margin], speedups=(1.5, 3.0, 100.0), costs=costs)
    cost = np.arange(1.0, 6) if costs is None else np.array(costs)
    right = seen.correct()
    assert made.scores == pytest.approx(right.mean(0))
    assert [gain.speedup for gain in made.gains] == [1.5, 3.0]  # no exit is as early as 100
    for gain in made.gains:
        within = cost[-1] / gain.speedup
        exits = {
            repr(Confidence(v)): seen.exit_steps(Confidence(v))
            for v in Confidence.tunable.values(5, 3)
        }
        scores = [
            right[np.arange(400), e - 1].mean()
            for e in exits.values()
            if cost[e - 1].mean() <= within
        ]
        assert gain.score >= max(scores)
        low, high, share = best_blind(right.mean(0), cost, within)
        assert gain.blind == pytest.approx(
            (1 - share) * right[:, low].mean() + share * right[:, high].mean()
        )
        assert gain.score >= gain.blind - 0.05
        assert gain.low < gain.gain < gain.high
    assert json.loads(json.dumps(made.to_dict()))["outcome"] == made.outcome


def test_gains_are_of_rows_that_chose_nothing() -> None:
    """Plain cross-fitting: all is chosen on nine tenths and compared on the last, at what the policy costs there."""
    rng = np.random.default_rng(2)
    values = (rng.random((60, 4)) + np.array([0.0, 0.3, 0.6, 0.9])).round(1)
    cost = np.array([1.0, 2.0, 3.0, 7.0])
    exits = rng.integers(1, 5, size=(30, 60))
    exits[7] = exits[3]  # a policy that is as good, and as dear, as another
    for within in (1.5, 3.0, 4.0):
        won = np.empty(60)
        for fold in np.array_split(np.random.default_rng(0).permutation(60), 10):
            others = np.array([row for row in range(60) if row not in fold])
            tried = []
            for policy in exits:
                spent = cost[policy - 1]
                if spent[others].mean() <= within:
                    tried.append(
                        (
                            values[others, policy[others] - 1].mean().round(12),
                            spent[others].mean(),
                            tuple(policy),
                        )
                    )
            if not tried:
                break
            chosen = np.array(max(tried, key=lambda one: one[:2])[2])
            at = max(within, cost[chosen[fold] - 1].mean())
            low, high, share = best_blind(values[others].mean(0), cost, at)
            blind = (1 - share) * values[fold, low] + share * values[fold, high]
            won[fold] = values[fold, chosen[fold] - 1] - blind
        found = _Tried(values, cost, exits, [""] * 30).cross_fit(within)
        if not tried:
            assert all(map(math.isnan, found))
            continue
        assert found[0] == pytest.approx(won.mean())
        greatest = (values.max(1) - values.min(1)).max()
        size = 60 + 1.96**2
        mean = won.sum() / size
        error = math.sqrt(((won**2).sum() + 1.96**2 * greatest**2) / size - mean**2) / math.sqrt(
            size
        )
        assert found[1:] == pytest.approx((mean - 1.96 * error, mean + 1.96 * error))


def test_of_equal_choices_the_most_expensive_is_taken() -> None:
    scores = np.array([0.5, 0.7, 0.7, 0.7 - 1e-15])
    assert best_most_expensive(scores, np.array([9.0, 1.0, 2.0, 3.0])) == 3


def world(rows: int, seed: int, sure: bool) -> ArrayRecord:
    """Rows of which half are right from step 1 and half at step 4 alone; confidence shows which, or is noise."""
    rng = np.random.default_rng(seed)
    easy = rng.random(rows) < 0.5
    labels = np.zeros(rows, dtype=int)
    shown = easy if sure else rng.random(rows) < 0.5
    outputs = np.zeros((rows, 4, 2))
    outputs[:, :, 0] = (
        np.where(easy, 1.0, -1.0)[:, None]
        * np.where(shown, 4.0, 0.5)[:, None]
        * rng.uniform(0.9, 1.1, (rows, 4))
    )
    outputs[:, 3, 0] = 4.0
    return ArrayRecord(outputs, labels=labels)


def test_exits_pay_where_confidence_knows_the_easy_rows() -> None:
    made = diagnose(world(400, 0, True))
    assert made.outcome == "exits pay"
    best = made.gains[0]
    assert best.score > 0.95 > best.blind
    assert "Early exits pay on this model: at ×" in made.verdict


def test_noise_seldom_pays() -> None:
    outcomes = [diagnose(world(200, seed, False), Confidence).outcome for seed in range(100)]
    assert outcomes.count("exits pay") <= 8  # three speed-ups, each with 2.5%
    assert outcomes.count("one step is as good") + outcomes.count("too few rows") >= 92


def test_one_step_is_as_good_where_all_rows_are_right_at_once() -> None:
    seen = record(3000)
    seen.outputs[:] = seen.outputs[:, -1:]
    made = diagnose(seen)
    assert made.outcome == "one step is as good"
    assert "one fixed step is as good as any policy tried" in made.verdict


def test_no_policy_is_cheap_enough() -> None:
    made = diagnose(record(100), Confidence(0.5).after(5), speedups=[2.0])
    assert made.outcome == "no policy is cheap enough"
    assert math.isnan(made.gains[0].score)


def test_few_rows_cannot_tell() -> None:
    made = diagnose(world(30, 3, False), Confidence, speedups=[2.0])
    assert made.outcome == "too few rows"
    assert "Record more rows" in made.verdict
    with pytest.raises(ValueError, match="at least 20 rows"):
        diagnose(record(19))


@pytest.mark.parametrize(("low", "pays"), [(0.01, True), (0.0, False), (-0.01, False)])
def test_a_gain_pays_if_its_interval_is_above_zero(low: float, pays: bool) -> None:
    assert Gain(2.0, "a policy", score=0.9, blind=0.8, gain=0.1, low=low, high=0.2).pays is pays
