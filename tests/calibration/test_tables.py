"""Tables of intermediate answers: read, refused by line, certified and kept on fresh items."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from ponder import policies
from ponder.calibration import Record, certify_steps
from ponder.errors import ArgumentError
from ponder.statistics.verdict import judge


def traces(items: int, seed: int, steps: int = 12) -> list[dict[str, Any]]:
    """Return traces that settle at some step; confidences say so, with some noise."""
    draw = np.random.default_rng(seed)
    lines = list[dict[str, Any]]()
    for item in range(items):
        settles = draw.integers(1, steps)
        for step in range(1, steps + 1):
            is_settled = step >= settles
            answer = "right" if is_settled else f"guess {draw.integers(5)}"
            certainty = draw.beta(8, 1) if is_settled else draw.beta(1, 3)
            name = f"{seed}-{item}"
            line = {"item": name, "step": step, "answer": answer, "confidence": certainty}
            lines.append({**line, "cost": float(step)})
    return lines


def exits_of_items(record: Record) -> dict[int, int]:
    """Return the exit step of each item, by its id."""
    exits = record.exit_steps(policies.RightAnswer(0.7))
    return dict(zip(record.row_ids.tolist(), exits.tolist(), strict=True))


def test_lines_in_any_order_are_one_record() -> None:
    lines = traces(30, seed=0)
    record = Record.from_table(lines)
    order = np.random.default_rng(1).permutation(len(lines))
    shuffled = Record.from_table(pd.DataFrame([lines[place] for place in order]))
    exits = exits_of_items(record)
    assert exits_of_items(shuffled) == exits
    first = [line["confidence"] > 0.7 for line in lines[:12]]
    assert exits[int(record.row_ids[0])] == (first.index(True) + 1 if any(first) else 12)


def test_an_item_that_ends_keeps_its_last_answer_and_is_certain() -> None:
    lines = [{"item": "a", "step": n, "answer": n, "confidence": 0.1} for n in (1, 2)]
    lines += [{"item": "b", "step": n, "answer": 0, "confidence": 0.1} for n in (1, 2, 3, 4)]
    record = Record.from_table(lines)
    assert record.agreement()[0].tolist() == [False, True, True, True]
    assert record.exit_steps(policies.RightAnswer(0.999)).tolist() == [3, 4]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"step": 3}, "line 2.*step 2"),
        ({"step": 1}, "line 2.*also in line 1"),
        ({"step": 2.5}, "line 2.*whole numbers"),
        ({"step": None}, "line 2.*a number in 'step'"),
        ({"confidence": 1.2}, "line 2.*confidence"),
        ({"confidence": "high"}, "line 2.*a number in 'confidence'"),
    ],
)
def test_a_bad_line_is_named(changed: dict[str, Any], words: str) -> None:
    lines = [{"item": "a", "step": n, "answer": n, "confidence": 0.5} for n in (1, 2)]
    lines[1].update(changed)
    with pytest.raises(ArgumentError, match=words):
        Record.from_table(lines)


def test_a_table_without_its_columns_is_refused() -> None:
    with pytest.raises(ArgumentError, match="item, step, answer"):
        Record.from_table([{"item": 1, "answer": 2}])


def test_a_certified_stop_is_kept_on_fresh_items() -> None:
    found = certify_steps(traces(1500, seed=0), level=0.02)
    fresh = Record.from_table(traces(1500, seed=1))
    exits = fresh.exit_steps(found.policy)
    differ = int((~fresh.agreement()[np.arange(1500), exits - 1]).sum())
    assert found.met
    assert found.mean_exit_step < 9
    assert judge(differ, 1500, 0.02, 0.95).name != "broken"
