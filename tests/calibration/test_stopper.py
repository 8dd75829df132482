"""Stoppers: an item stops where its record stops; the promise is saved, kept and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ponder import policies
from ponder.calibration import Record, Stopper, certify_steps
from ponder.errors import ArgumentError, CheckpointError
from ponder.policies import ExitPolicy
from tests.calibration.test_tables import traces

BUDGET = 16


def votes(items: int, seed: int, hard: float = 0.1) -> list[dict[str, Any]]:
    """Return votes on items, most of which are nearly unanimous."""
    draw = np.random.default_rng(seed)
    lines = list[dict[str, Any]]()
    for item in range(items):
        share = 0.6 if draw.random() < hard else 0.97
        for step in range(1, BUDGET + 1):
            answer = "yes" if draw.random() < share else f"no {draw.integers(3)}"
            lines.append({"item": f"{seed}-{item}", "step": step, "answer": answer})
    return lines


def numbers(items: int, seed: int) -> list[dict[str, Any]]:
    """Return numbers around a mean, of which some items have a wide spread."""
    draw = np.random.default_rng(seed)
    lines = list[dict[str, Any]]()
    for item in range(items):
        spread = draw.choice([0.1, 1.0])
        for step in range(1, BUDGET + 1):
            answer = float(draw.normal(5.0, spread))
            lines.append({"item": f"{seed}-{item}", "step": step, "answer": answer})
    return lines


KINDS: dict[str, dict[str, Any]] = {
    "last": {"make": traces},
    "votes": {"make": votes},
    "mean": {"make": numbers, "tolerance": 0.3},
}


@pytest.mark.parametrize("combine", KINDS)
def test_a_certified_stop_is_saved_and_kept_on_fresh_items(combine: Any, tmp_path: Path) -> None:
    make = KINDS[combine]["make"]
    seen = make(1200, 0)
    found = certify_steps(
        seen, combine=combine, tolerance=KINDS[combine].get("tolerance"), level=0.03
    )
    assert found.met
    assert found.mean_exit_step < 0.75 * found.stopper.budget
    found.stopper.save(tmp_path / "stop.json")
    stopper = Stopper.load(tmp_path / "stop.json")
    assert stopper.policy == found.policy
    assert stopper.statement == found.statement
    assert stopper.check(make(1200, 1)).name != "broken"
    with pytest.raises(ArgumentError, match="that taught, chose or certified"):
        stopper.check(seen)
    text = (tmp_path / "stop.json").read_text()
    (tmp_path / "stop.json").write_text(text.replace('"level": 0.03', '"level": 0.01'))
    with pytest.raises(CheckpointError, match="Certify again"):
        Stopper.load(tmp_path / "stop.json")


@pytest.mark.parametrize(
    ("combine", "policy"),
    [
        ("votes", policies.Lead(1.2)),
        ("mean", policies.StandardError(0.1)),
        ("last", policies.Patience(2)),
        ("last", policies.RightAnswer(0.7).after(2)),
    ],
)
def test_an_item_stops_where_its_record_stops(combine: Any, policy: ExitPolicy) -> None:
    lines = KINDS[combine]["make"](30, 0)
    record = Record.from_table(lines, combine=combine)
    stopper = Stopper(policy, record.num_steps, combine)
    exits = record.exit_steps(policy).tolist()
    for item, exit_step in enumerate(exits):
        of_item = lines[item * record.num_steps : (item + 1) * record.num_steps]
        answers = [line["answer"] for line in of_item]
        confidences = [line.get("confidence", 1.0) for line in of_item]
        shorter = range(record.num_steps + 1)
        stops = stopper.should_stop_each(
            [answers[:size] for size in shorter], [confidences[:size] for size in shorter]
        )
        assert stops.index(True) == exit_step


def test_the_answer_is_combined() -> None:
    last = policies.LastStep()
    assert Stopper(last, 3, "votes").answer(["b", "a", "a", "b"]) == "b"
    assert Stopper(last, 3, "last").answer(["b", "a"]) == "a"
    assert Stopper(last, 3, "mean").answer([1.0, 2.0]) == 1.5


def test_a_check_that_says_broken_where_other_items_come() -> None:
    stopper = certify_steps(votes(1200, 0, hard=0.0), combine="votes", level=0.02).stopper
    assert stopper.check(votes(1200, 1, hard=0.9)).name == "broken"


def test_votes_of_an_item_that_ends_early_are_refused_by_line() -> None:
    lines = votes(3, 0)
    del lines[-1]
    with pytest.raises(ArgumentError, match=f"line {len(lines)}.*step {BUDGET} of item '0-2'"):
        Record.from_table(lines, combine="votes")


def test_what_promises_nothing_is_not_checked() -> None:
    with pytest.raises(ArgumentError, match="promises nothing"):
        Stopper(policies.Lead(9), 9).check(votes(9, 0))
    few = certify_steps(votes(20, 0), combine="votes", level=0.01)
    assert not few.met
    with pytest.raises(ArgumentError, match="promises nothing"):
        few.stopper.check(votes(9, 1))


def test_a_policy_on_confidences_asks_for_them() -> None:
    with pytest.raises(ArgumentError, match="hazard"):
        Stopper(policies.RightAnswer(0.9), 9, "last").should_stop(["a"])


def test_a_saved_stopper_is_plain_json(tmp_path: Path) -> None:
    Stopper(policies.Lead(9), 9).save(tmp_path / "stop.json")
    assert json.loads((tmp_path / "stop.json").read_text())["policy"]["name"] == "lead"
