"""The order of a batch: a random sample, then doubtful rows for the reference, and the surest for the cheap model."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ponder.cascade.asking import Asking
from ponder.cascade.live import Live
from ponder.cascade.live_models import Learner
from ponder.cascade.live_order import SAMPLE, Order
from ponder.cascade.live_rule import AuditRule, Standing
from ponder.cascade.live_store import Lesson
from tests.ground import house

ROWS = 3000
KILLED = 9
HARD = 5
"""Every fifth row is hard."""


def is_hard(row: int) -> bool:
    return row % HARD == 0


class Doubting:
    """A model that doubts the hard rows, is wrong on half of them, and is surer of rows with large numbers."""

    classes = ("no", "yes")

    def predict_proba(self, rows: Sequence[int]) -> Any:
        sure = np.array([0.55 if is_hard(row) else 0.985 + row / 300_000 for row in rows])
        return np.stack([1.0 - sure, sure], axis=1)


class Noting(AuditRule):
    """The usual rule, which notes the doubts of the rows that it lets the cheap model answer."""

    def __init__(self) -> None:
        super().__init__()
        self.let = list[float]()

    def audit_probability(self, doubt: float, standing: Standing) -> float:
        probability = super().audit_probability(doubt, standing)
        if standing.doubts is not None and probability < 1.0 and doubt < 0.4:
            self.let.append(doubt)
        return probability


def ask(rows: Sequence[int]) -> list[str]:
    return ["no" if is_hard(row) and row % (2 * HARD) == 0 else "yes" for row in rows]


def test_rows_are_taken_from_both_ends_and_rows_that_were_put_back_come_first() -> None:
    order = Order([3, 1, 0, 2])
    assert [order.take(), len(order), order.sorted, order.doubts] == [3, 3, False, None]
    order.put_back([3])
    assert order.upcoming(9) == [3, 1, 0, 2]
    order.sort([0.3, 0.1, 0.0, 0.2])
    assert order.upcoming(2) == [3, 2]
    assert [order.take(), order.take_surest()] == [3, 0]
    assert order.doubts is not None
    assert order.doubts.tolist() == [0.2, 0.1]
    order.put_back([3, 0])
    assert [order.take(), order.take_surest(), order.take_surest(), order.take()] == [3, 0, 1, 2]
    assert len(order) == 0


def test_a_batch_asks_about_the_doubtful_rows_before_it_answers_the_sure_ones() -> None:
    asked = list[int]()

    def noted(rows: Sequence[int]) -> list[str]:
        asked.extend(rows)
        return ask(rows)

    coin = random.Random(0).random
    rule = Noting()
    live = Live(noted, 0.03, teach=lambda rows, names: Doubting(), coin=coin, rule=rule)
    found = live.answer(range(ROWS), finite=True)
    sample = int(SAMPLE * ROWS)
    assert 0.1 < np.mean([is_hard(row) for row in asked[:sample]]) < 0.3  # by chance, 0.2
    assert rule.let[:1000] == sorted(rule.let[:1000])  # the surest first
    picked = [lesson.row for lesson in live._store.lessons() if lesson.picked]
    assert len(picked) > 300
    assert all(is_hard(row) for row in picked)
    by_cheap = [row for row, source in enumerate(found.source) if source == "cheap"]
    assert len(by_cheap) > ROWS / 2
    assert np.mean([is_hard(row) for row in by_cheap]) < 0.05
    wrong = sum(one != two for one, two in zip(found.labels, ask(range(ROWS)), strict=True))
    assert wrong <= live.account.ledger.bound <= 0.03 * ROWS


def label_until(path: Path, calls: int) -> None:
    """Label a batch in a process that is killed at a call, without any clean-up."""
    log = os.open(path.with_suffix(".log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    begun = 0

    def noted(rows: Sequence[int]) -> list[str]:
        nonlocal begun
        begun += 1
        if begun == calls:
            os._exit(KILLED)
        os.write(log, f"asked {rows[0]}\n".encode())
        return ask(rows)

    def teach(rows: Sequence[int], names: Sequence[str]) -> Doubting:
        os.write(log, f"taught {len(rows)}\n".encode())
        return Doubting()

    # The same coin for each run: what they ask differs by the kills alone.
    with Live(noted, 0.03, path=path, teach=teach, coin=lambda: 0.5, asking=Asking(8)) as live:
        found = live.answer(range(ROWS), ids=range(ROWS), finite=True)
    path.with_suffix(".json").write_text(json.dumps(found.labels))


def test_a_batch_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    command = "from pathlib import Path; from tests.cascade.test_live_order import label_until\n"
    path = tmp_path / "labels.db"

    def run(path: Path, calls: int) -> list[tuple[str, int]]:
        """Label until a call; return what the log has then: rows that were asked, and lessons."""
        code = f"{command}label_until(Path({str(path)!r}), {calls})"
        made = subprocess.run([sys.executable, "-c", code], cwd=house.ROOT)
        assert made.returncode == (KILLED if calls <= ROWS else 0)
        lines = [line.split() for line in path.with_suffix(".log").read_text().splitlines()]
        return [(event, int(number)) for event, number in lines]

    whole = run(tmp_path / "whole.db", ROWS + 1)
    before = list[tuple[str, int]]()
    for calls in (150, 500, 30, 60, ROWS + 1):
        data = sqlite3.connect(path)
        under_way = set[int]()
        if before:
            query = (
                "SELECT id FROM rows JOIN answers ON rows.key = answers.key "
                "WHERE audited AND differs IS NULL AND label IS NULL"
            )
            under_way = {int(name) for (name,) in data.execute(query)}
        data.close()
        after = run(path, calls)
        new = after[len(before) :]
        taught = [lessons for event, lessons in before if event == "taught"]
        if taught:  # the cheap model is the one of the killed process: the last of its three fits
            assert ("taught", taught[-1]) in new[:3]
        rows = [row for event, row in new if event == "asked"]
        # Rows that were under way come first, since their audits count as caught until then.
        assert under_way - {row for event, row in before if event == "asked"} <= set(rows[:40])
        before = after
    asked = [row for event, row in before if event == "asked"]
    paid_twice = len(asked) - len(set(asked))
    assert paid_twice <= 4 * 8
    asked_by_whole = {row for event, row in whole if event == "asked"}
    assert len(asked_by_whole) < ROWS / 2
    # Answers under way at a kill come later than they would have, as they do between two whole runs.
    assert len(set(asked) ^ asked_by_whole) <= 4 * 8
    answers, answers_of_whole = (
        json.loads((tmp_path / name).read_text()) for name in ("labels.json", "whole.json")
    )
    differ = [one != two for one, two in zip(answers, answers_of_whole, strict=True)]
    assert sum(differ) <= 4 * 8


def test_rows_that_were_picked_for_their_doubt_teach_and_are_no_evidence_of_doubts() -> None:
    taught = list[int]()

    def teach(rows: Sequence[int], names: Sequence[str]) -> Doubting:
        taught.append(len(rows))
        return Doubting()

    names = ask(range(100))
    lessons = [Lesson(row, name, 0.0 if is_hard(row) else 1.0) for row, name in enumerate(names)]
    outcomes = Learner(None, teach).learn(lessons)
    assert outcomes is not None
    assert len(outcomes) == 80
    assert max(one.doubt for one in outcomes) < 0.02
    assert taught == [60, 60, 100]
