"""Tables and bars, as a terminal of 80 columns and a pipe see them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.glue.training import ShortLines
from benchmarks.parity.cli import _tell
from benchmarks.risk.cli import COLUMNS as RISK_COLUMNS
from benchmarks.risk.cli import _cells
from benchmarks.speed.page import COLUMNS, cells
from benchmarks.terminal import print_table, table_lines

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def words(lines: list[str]) -> list[str]:
    return sorted(word for line in lines for word in line.split() if set(word) != {"─"})


@given(
    st.lists(st.lists(st.text("ab 1.%±×≤-", max_size=30).map(str.strip), min_size=3, max_size=3), max_size=6),
    st.integers(10, 80),
)
def test_no_word_is_cut_whatever_the_width(rows: list[list[str]], width: int) -> None:
    columns = ("case", "seconds", "range of three")
    lines = table_lines(columns, rows, width)
    assert words(lines) == words([*columns, *(cell for row in rows for cell in row)])
    assert not [line for line in lines if line != line.rstrip()]
    longest = [
        max(len(word) for cell in column for word in cell.split() or [""])
        for column in zip(columns, *rows, strict=True)
    ]
    if sum(longest) + 20 <= width:  # signs may be tied to a number
        assert max(map(len, lines)) <= width


def test_numbers_stand_under_one_another_and_a_group_has_one_heading() -> None:
    rows = [("a", "fast", "1.50"), ("a", "slow", "12.25"), ("b", "fast", "—")]
    assert table_lines(("case", "way", "seconds"), rows, grouped=True) == [
        "way   seconds",
        "────  ───────",
        "a",
        "fast     1.50",
        "slow    12.25",
        "",
        "b",
        "fast        —",
    ]


def test_committed_results_fit_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for path in sorted((RESULTS / "speed").glob("*.json")):
        figures = json.loads(path.read_text()).get("figures", [])
        print_table(COLUMNS, [cells(figure) for figure in figures], grouped=True)
    outcomes = json.loads((RESULTS / "risk" / "risk.json").read_text())["outcomes"]
    print_table(RISK_COLUMNS, [[cell.replace("_", " ") for cell in _cells(each)] for each in outcomes], grouped=True)
    runs = [json.loads(path.read_text()) for path in sorted((RESULTS / "parity").glob("small-s*.json"))]
    _tell(runs, tmp_path, "small", None)
    said = capsys.readouterr().out
    assert "…" not in said
    assert [line for line in said.splitlines() if len(line) > 80 and str(tmp_path) not in line] == []


def test_an_epoch_is_one_line_above_the_bar() -> None:
    callback, written = ShortLines(), io.StringIO()
    callback.training_bar = SimpleNamespace(write=lambda line: print(line, file=written))
    state: Any = SimpleNamespace(log_history=[{"loss": 0.51}], is_world_process_zero=True)
    for logs in ({"loss": 0.51, "epoch": 2.0}, {"eval_score": 0.875, "eval_mean_exit_step": 2.5, "epoch": 2.0}):
        callback.on_log(None, state, None, logs=logs)  # type: ignore[arg-type]
    assert written.getvalue() == "epoch 2: loss 0.51, score 87.5 %, mean exit step 2.50\n"


def test_tables_of_commands_are_those_that_fit() -> None:
    # Trap: rich cuts the words of a table that is too wide, into "viola…", say.
    for path in sorted((RESULTS.parent).glob("*/cli.py")):
        assert "rich.table" not in path.read_text(), f"{path}: use benchmarks.terminal.print_table"
