"""Audits: the bet against the promise, its guarantees in simulation, and its state."""

from __future__ import annotations

import json
import math
import random
from functools import cache
from pathlib import Path
from statistics import mean

import pytest

from ponder._utils.rounding import rounded_down, rounded_up
from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError
from ponder.monitor import Audit, audits_needed, confidence_sequence
from ponder.monitor.betting import Capital

ODDS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)


def audits_to_the_end(audit: Audit, rate: float, rng: random.Random, limit: int) -> int | None:
    """The audit at which the stage ends; None where it does not within the limit."""
    for number in range(1, limit + 1):
        if audit.record(rng.random() < rate):
            return number
    return None


def test_without_drift_at_most_delta_of_the_streams_step_back() -> None:
    # At a disagreement of exactly the level, the worst that the promise allows.
    rng, confidence, streams = random.Random(0), 0.9, 300
    false = sum(audits_to_the_end(Audit(0.05, confidence), 0.05, rng, 1000) is not None for _ in range(streams))
    assert 0 < false <= streams * (1.0 - confidence)


@pytest.mark.parametrize("before", [0, 400])
def test_under_a_tripled_disagreement_it_reacts_within_the_audits_that_theory_asks_for(before: int) -> None:
    rng, needed = random.Random(1), audits_needed(0.05, 0.95, 0.15, after=before)
    delays = []
    while len(delays) < 100:
        audit = Audit(0.05, 0.95)
        if audits_to_the_end(audit, 0.05, rng, before) is None:
            delays.append(audits_to_the_end(audit, 0.15, rng, 100_000) or math.inf)
    divergence = 0.15 * math.log(3.0) + 0.85 * math.log(0.85 / 0.95)
    assert mean(delays) <= needed
    assert needed >= math.log(20.0) / divergence  # what no test with this guarantee can beat


@pytest.mark.parametrize(("level", "rate"), [(0.2, 0.24), (0.66, 0.8), (0.9, 0.95), (0.999, 0.9998)])
def test_a_disagreement_a_little_above_the_level_is_noticed(level: float, rate: float) -> None:
    # Trap: bets on disagreements that are far above the level lose all of their money to one that is just above it.
    for seed in range(10):
        limit = math.ceil(10 * audits_needed(level, 0.95, rate))
        assert audits_to_the_end(Audit(level), rate, random.Random(seed), limit) is not None


@pytest.mark.parametrize("level", [1e-9, 1e-6, 0.01, 0.3, 0.7, 0.95, 1 - 1e-6, 1 - 1e-9])
def test_a_tenth_more_in_odds_is_noticed_at_every_level(level: float) -> None:
    odds = 1.1 * level / (1.0 - level)
    assert 0.0 < audits_needed(level, 0.95, odds / (1.0 + odds)) < math.inf


def test_the_wealth_is_a_supermartingale_by_hand() -> None:
    capital, level = Capital.start(0.02), 0.02
    for disagrees in (False, True, False, False):
        up, down = capital.after(True).wealth, capital.after(False).wealth
        assert level * up + (1.0 - level) * down == pytest.approx(capital.wealth, rel=1e-12)  # fair at the level
        assert 0.01 * up + 0.99 * down < capital.wealth  # and a loss below it
        capital = capital.after(disagrees)
    assert Capital.start(0.02).wealth == 1.0


def test_the_capital_is_what_a_plain_loop_over_all_starting_times_gives() -> None:
    outcomes = [random.Random(3).random() < 0.1 for _ in range(60)]
    capital = Capital.start(0.04)
    for x in outcomes:
        capital = capital.after(x)
    odds, total = [ratio * 0.04 / 0.96 for ratio in ODDS], 0.0
    for q in [each / (1 + each) for each in odds]:
        for begin in range(len(outcomes) + 1):
            share = 0.5 if begin == 0 else 0.5 / math.log2(begin + 1) - 0.5 / math.log2(begin + 2)
            grown = math.prod(q / 0.04 if x else (1 - q) / 0.96 for x in outcomes[begin:])
            total += share / len(ODDS) * grown
    assert capital.wealth == pytest.approx(total + 0.5 / math.log2(len(outcomes) + 2), rel=1e-9)


def test_the_confidence_sequence_holds_the_truth_at_every_time() -> None:
    rng, missed, bounds = random.Random(2), 0, cache(confidence_sequence)
    for _ in range(300):
        seen = 0
        for n in range(1, 301):
            seen += rng.random() < 0.1
            low, high = bounds(seen, n, 0.9)
            if not low <= 0.1 <= high:
                missed += 1
                break
    assert missed <= 0.1 * 300


def test_the_confidence_sequence_narrows_and_keeps_its_ends() -> None:
    assert confidence_sequence(0, 0, 0.95) == (0.0, 1.0)
    assert confidence_sequence(0, 500, 0.95)[0] == 0.0
    assert confidence_sequence(500, 500, 0.95)[1] == 1.0
    few, many = confidence_sequence(5, 50, 0.95), confidence_sequence(500, 5000, 0.95)
    assert few[0] < many[0] < 0.1 < many[1] < few[1]


@pytest.mark.parametrize(
    ("disagreements", "audits", "confidence"),
    [(9, 10, 1 - 1e-14), (999_999, 10**6, 1 - 1e-9), (0, 1, 1 - 2**-53), (1, 1, 1 - 2**-53), (1, 10, 1 - 2**-53)],
)
def test_the_confidence_sequence_is_one_where_nearly_nothing_is_left_to_chance(
    disagreements: int, audits: int, confidence: float
) -> None:
    low, high = confidence_sequence(disagreements, audits, confidence)
    assert 0.0 <= low < disagreements / audits or low == disagreements == 0
    assert disagreements / audits < high <= 1.0 or disagreements == audits


def test_the_share_is_audited_whatever_the_answers_are() -> None:
    audit = Audit(share=0.1)
    chosen = [audit.chosen() for _ in range(5000)]
    assert 400 < sum(chosen) < 600
    assert chosen == [again.chosen() for again in [Audit(share=0.1)] for _ in range(5000)]
    other = Audit(share=0.1, seed=1)
    assert chosen != [other.chosen() for _ in range(5000)]
    whole = Audit(share=1.0)
    assert all(whole.chosen() for _ in range(100))


def test_a_restart_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    rng = random.Random(5)
    outcomes = [rng.random() < 0.1 for _ in range(600)]
    unbroken, restarted, path = Audit(0.02, share=0.5), Audit(0.02, share=0.5), tmp_path / "audit.json"
    for number, x in enumerate(outcomes):
        if number % 37 == 0:
            restarted.save(path)
            restarted = Audit.load(path)
        assert unbroken.chosen() == restarted.chosen()
        assert unbroken.record(x) == restarted.record(x)
        assert unbroken.to_dict() == restarted.to_dict()
    assert unbroken.stage >= 2
    assert not list(tmp_path.glob(".*"))  # nothing unfinished stays


def test_a_step_back_says_what_was_seen_and_begins_the_next_stage() -> None:
    audit = Audit(0.05, 0.95)
    left = next(left for left in (audit.record(number % 3 == 0) for number in range(60)) if left)
    assert (audit.stage, audit.audits, audit.disagreements, audit.wealth) == (1, 0, 0, 1.0)
    assert left.stage == 0
    assert left.disagreements / left.audits > 0.05
    assert f"{left.disagreements} of {left.audits} audited answers differ" in left.statement


def test_what_an_alarm_says_of_its_interval_does_not_contradict_it() -> None:
    # Trap: "which leaves a disagreement between 0.0098 and …", of a promise of 0.01 that can no longer be held.
    audit, rng = Audit(0.01), random.Random(0)
    told = [left for left in (audit.record(rng.random() < 0.03) for _ in range(1000)) if left]
    assert told[0].low <= 0.01, "or nothing was tested"
    held, differ, interval = told[0].statement.replace("; ", ": ").split(": ")
    assert held == "the promise that at most 0.01 of the answers differ from full depth can no longer be held"
    assert differ.endswith("audited answers differ, which is too many for it (confidence 0.95)")
    low, high = rounded_down(told[0].low, 4), rounded_up(told[0].high, 4)
    assert interval == f"a two-sided interval, which proves less, is {low} to {high}"


@pytest.mark.parametrize(
    ("level", "stakes"),
    [
        (0.05, [0.143, 0.121, 0.086, 0.042, 0.007]),
        (0.4, [0.1, 0.2]),  # on 0.6 and 0.8
        (0.9, [0.4]),  # on 0.95
    ],
)
def test_a_state_of_before_there_were_eight_bets_goes_on(level: float, stakes: list[float]) -> None:
    capital = {"level": level, "audits": 7, "stakes": stakes}
    found = Audit.from_dict({**Audit(level).to_dict(), "answers": 9, "disagreements": 2, "capital": capital})
    assert (found.answers, found.audits, found.disagreements) == (9, 7, 2)
    assert found.wealth == pytest.approx(sum(stakes) + 0.5 / math.log2(9))  # not a penny more or less
    assert Audit.from_dict(found.to_dict()).to_dict() == found.to_dict()
    while found.record(True) is None:
        pass
    assert found.to_dict()["capital"] == Audit(level).to_dict()["capital"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"level": 0.0},
        {"level": 1.0},
        {"level": math.nan},
        {"level": True},
        {"confidence": 1.0},
        {"share": 0.0},
        {"share": 1.5},
        {"seed": -1},
        {"seed": 0.5},
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        Audit(**arguments)  # type: ignore[arg-type]


def test_an_outcome_must_be_one_bool() -> None:
    with pytest.raises(ArgumentTypeError, match="disagrees"):
        Audit().record(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"level": 2.0},
        {"stage": -1},
        {"answers": "many"},
        {"disagreements": 7},
        {"capital": {}},
        {"capital": {"level": 0.01, "audits": 0, "stakes": [0.5]}},
        {"capital": {"level": 0.02, "audits": 0, "stakes": [1.0] * 6}},
        {"capital": {"level": 0.01, "audits": 0, "stakes": []}},
        {"capital": {"level": 0.01, "audits": 0, "stakes": [0.1] * 7}},
        {"capital": {"level": 0.01, "audits": 0, "stakes": [-1.0] * 6}},
    ],
)
def test_a_state_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        Audit.from_dict({**Audit().to_dict(), **change})


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(Audit().to_dict())[:40])
    with pytest.raises(CheckpointError):
        Audit.load(path)
    with pytest.raises(CheckpointError):
        Audit.load(tmp_path / "none.json")


@pytest.mark.parametrize("arguments", [(0.01, 0.95, 0.01), (0.01, 1.0, 0.03), (0.0, 0.95, 0.03)])
def test_theory_refuses_what_is_no_shift(arguments: tuple[float, float, float]) -> None:
    with pytest.raises(ArgumentError):
        audits_needed(*arguments)
