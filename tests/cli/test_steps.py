"""`certify --steps` and `check`: when items of a table may stop, and whether that holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import ponder
from tests.calibration.test_stopper import votes
from tests.calibration.test_tables import traces

WRITERS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    "csv": lambda table, path: table.to_csv(path, index=False),
    "jsonl": lambda table, path: table.to_json(path, orient="records", lines=True),
    "parquet": lambda table, path: table.to_parquet(path, index=False),
}


def table_file(path: Path, lines: list[dict[str, Any]], **names: str) -> Path:
    """Write lines as a table, with other names of columns."""
    WRITERS[path.suffix[1:]](pd.DataFrame(lines).rename(columns=names), path)
    return path


@pytest.mark.parametrize("kind", WRITERS)
def test_steps_are_certified_and_judged_on_fresh_items(
    run: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    stop = tmp_path / "stop.json"
    names = {"item": "question", "step": "n", "answer": "a", "confidence": "p"}
    seen = table_file(tmp_path / f"steps.{kind}", traces(900, seed=0), **names)
    options = ("--item", "question", "--steps", "n", "--answer", "a", "--confidence-column", "p")
    made = run("certify", seen, *options, "--level", "0.03", "--out", stop, "--json")
    card = json.loads(made.output)
    assert card["met"]
    assert card["mean_exit_step"] < 9
    fresh = table_file(tmp_path / f"fresh.{kind}", traces(2500, seed=1), **names)
    judged = run("check", stop, fresh, code=0)
    assert "The promise is kept" in judged.output
    opened = ponder.open(stop)
    assert opened.statement == card["statement"]
    assert opened.should_stop(["x"] * opened.budget)
    run("check", stop, table_file(tmp_path / f"few.{kind}", traces(9, seed=2), **names), code=3)
    again = run("check", stop, seen, code=2).stderr
    assert "that taught, chose or certified" in " ".join(again.split())


def test_votes_are_counted_and_a_broken_promise_is_seen(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    stop = tmp_path / "stop.json"
    seen = table_file(tmp_path / "votes.csv", votes(600, seed=0, hard=0.0))
    shown = run("certify", seen, "--steps", "step", "--combine", "votes", "--out", stop)
    assert "a lead above" in " ".join(shown.output.split())
    others = table_file(tmp_path / "others.csv", votes(600, seed=1, hard=0.9))
    assert "broken" in run("check", stop, others, code=1).output


def test_a_bad_line_of_the_file_is_named(run: Callable[..., Any], tmp_path: Path) -> None:
    lines = traces(3, seed=0)
    del lines[4]
    file = table_file(tmp_path / "steps.csv", lines)
    shown = run("certify", file, "--steps", "step", "--out", tmp_path / "stop.json", code=2)
    assert "line 5: expected step 5 of item '0-0'; got step 6" in " ".join(shown.stderr.split())
    assert not (tmp_path / "stop.json").exists()
