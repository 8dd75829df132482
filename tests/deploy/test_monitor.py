"""Audits: the e-process against plain loops, how often a stage ends under the promise, and state that survives."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import pytest

from ponder import policies
from ponder.deploy.monitor import Audit, StepBack, Watch, audits_needed
from ponder.errors import ArgumentError, CheckpointError

RATIOS = ("1.1", "1.25", "1.5", "2", "3", "5", "10", "30")


def wealth_by_hand(outcomes: list[bool], level: str) -> float:
    """The mixture with delayed start, in fractions but for the reserve."""
    reserve = [Fraction(0.5 / math.log2(n + 2)) for n in range(len(outcomes) + 1)]
    total = reserve[-1]
    for ratio in map(Fraction, RATIOS):
        bet = Fraction(1, 2) / len(RATIOS)
        for n, disagrees in enumerate(outcomes):
            bet *= (ratio if disagrees else 1) / (1 + (ratio - 1) * Fraction(level))
            bet += (reserve[n] - reserve[n + 1]) / len(RATIOS)
        total += bet
    return float(total)


def test_wealth_is_the_mixture_of_likelihood_ratios() -> None:
    draw, outcomes, audit = random.Random(0), list[bool](), Audit(level=0.05, confidence=0.9999)
    for _ in range(60):
        outcomes.append(draw.random() < 0.06)
        assert audit.record(outcomes[-1]) is None
        assert audit.wealth == pytest.approx(wealth_by_hand(outcomes, "0.05"), rel=1e-12)


def test_a_stage_rarely_ends_while_the_promise_holds_and_ends_soon_where_it_is_broken() -> None:
    draw = random.Random(1)

    def audits_until_the_end(rate: float, audit: Audit, most: int) -> int:
        return next((n for n in range(1, most + 1) if audit.record(draw.random() < rate)), most + 1)

    ended = sum(
        audits_until_the_end(0.05, Audit(level=0.05, confidence=0.9), 1000) <= 1000
        for _ in range(300)
    )
    assert ended <= 0.1 * 300 + 3 * math.sqrt(300 * 0.1 * 0.9)
    bound = audits_needed(0.05, 0.9, 0.15)
    waits = [
        audits_until_the_end(0.15, Audit(level=0.05, confidence=0.9), 5000) for _ in range(200)
    ]
    assert sum(waits) / 200 <= bound
    late = Audit(level=0.05, confidence=0.9)
    for n in range(2000):
        late.record(n % 50 == 0)
    assert audits_until_the_end(0.3, late, 2000) < 500  # a delayed start still notices


def test_an_audit_goes_on_from_its_state() -> None:
    one = Audit(level=0.02, share=0.3, seed=5)
    for answer in range(300):
        if one.chosen():
            one.record(answer % 40 == 0)
    other = Audit(**json.loads(json.dumps(asdict(one))))
    for answer in range(300):
        assert one.chosen() == other.chosen()
        assert one.record(answer % 30 == 0) == other.record(answer % 30 == 0)
    assert one == other


def test_policies_step_back_for_good_and_the_state_survives_a_restart(tmp_path: Path) -> None:
    order, ends = [policies.Confidence(0.8), policies.Confidence(0.95)], list[StepBack]()
    path = tmp_path / "audit.json"
    watch = Watch(order, Audit(level=0.05, share=1.0), path, ends.append)
    stages = []
    while watch.stage < 2:
        stages.append(stage := watch.stage)
        assert watch.chosen(stage)
        watch.record(True, stage)
        watch.record(True, stage + 1)  # of another stage: says nothing
    assert [end.stage for end in ends] == [0, 1]
    assert stages == sorted(stages)
    assert watch.policy == policies.LastStep()
    assert not watch.chosen(2)
    assert "can no longer be held" in ends[0].statement
    again = Watch(order, Audit(level=0.05, share=1.0), path)
    assert again.stage == 2
    assert (
        again.audit.answers == watch.audit.answers - 1
    )  # what was not followed by an audit is not written
    with pytest.raises(ArgumentError, match="a file of its own"):
        Watch(order, Audit(level=0.01), path)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="no state of an audit"):
        Watch(order, Audit(level=0.05), path)


def test_a_share_is_drawn_and_a_stage_begins_anew() -> None:
    audit = Audit(level=0.05, confidence=0.9, share=0.3)
    assert sum(audit.chosen() for _ in range(2000)) / 2000 == pytest.approx(0.3, abs=0.05)
    fresh = audit.wealth
    while audit.record(True) is None:
        pass
    assert (audit.stage, audit.audits, audit.wealth) == (1, 0, fresh)
    watch = Watch([policies.Confidence(0.8), policies.Confidence(0.95)], audit)
    watch.record(True, 0)  # of the stage before: says nothing
    assert audit.audits == 0
    prices = {ratio: math.log1p((ratio - 1.0) * 0.05) for ratio in map(float, RATIOS)}
    grown = [
        (math.log(16 / 0.1) + math.log(r) - own) / (0.15 * math.log(r) - own)
        for r, own in prices.items()
    ]
    assert audits_needed(0.05, 0.9, 0.15) == pytest.approx(min(each for each in grown if each > 0))


def test_audits_run_where_torch_is_not_installed() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import ponder; print(ponder.monitor.Audit(0.02))"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "level=0.02" in made.stdout
