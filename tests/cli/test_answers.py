"""Files of answers: every suffix, the standard streams, cuts at any byte, and rows without an answer."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ponder.cli.answers import answer_file
from ponder.cli.app import app
from ponder.cli.texts import read_texts
from ponder.deploy.folders import Opened
from ponder.errors import ArgumentError
from tests.cli.conftest import Folders

NAMES = ["id", "text", "label", "probability", "exit_step"]
GIVEN: list[dict[str, Any]] = [
    {"id": "1", "text": "汉字 and 😀"},
    {"id": "2", "text": 'two\nlines, "quoted"'},
    {"id": "3", "text": "é" * 200_000},  # longer than the default limit of the csv module
]
ROWS = [{**row, "label": "yes", "probability": 0.5, "exit_step": 2} for row in GIVEN]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_file_that_was_cut_anywhere_goes_on(tmp_path: Path, name: str) -> None:
    whole = answer_file(tmp_path / name, NAMES)
    whole.append(ROWS, begins=True)
    content = whole.path.read_bytes()
    for cut in (*range(150), len(content) - 3, len(content)):
        part = answer_file(tmp_path / f"part-{name}", NAMES)
        part.path.write_bytes(content[:cut])
        kept = part.resume(GIVEN)
        part.append(ROWS[kept:], begins=not kept)
        assert part.path.read_bytes() == content, cut
    with pytest.raises(ArgumentError, match="answers to these texts"):
        whole.resume([{"id": "9", "text": "other"}, *GIVEN[1:]])


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_answers_are_read_again(
    run: Callable[..., Any], folders: Folders, tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    run("predict", folders.export, "--texts", folders.fresh, "--out", out)
    rows = read_texts(out, ["text"]).rows
    assert len(rows) == 300
    assert set(rows[0]) == {"id", "label", "text", "predicted_label", "probability", "exit_step"}
    if name != "a.csv":
        assert isinstance(rows[0]["exit_step"], int)
    if name == "a.parquet":
        arguments = ("predict", folders.export, "--texts", folders.fresh, "--out", out)
        assert "to continue" in run(*arguments, "--resume", code=2).stderr
    assert (
        "--out: expected"
        in run(
            "predict", folders.export, "--texts", folders.fresh, "--out", tmp_path / "a.xls", code=2
        ).stderr
    )


@pytest.mark.parametrize("given", ["a b c\nd e\n", '{"text": "a b c"}\n{"n": 1, "text": "d e"}\n'])
def test_the_standard_streams(folders: Folders, given: str) -> None:
    arguments = ["predict", str(folders.export), "--texts", "-", "--out", "-"]
    result = CliRunner().invoke(app, arguments, input=given)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["a b c", "d e"]
    assert rows[0]["label"] in ("no", "maybe", "yes")


def test_json_lines_with_other_keys_and_half_a_character(
    run: Callable[..., Any], folders: Folders, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.jsonl"
    out = tmp_path / "out.csv"
    texts.write_text('{"id": 1, "text": "a b"}\n{"text": "c \\ud83d", "id": 2, "more": "x"}\n')
    told = run("predict", folders.export, "--texts", texts, "--out", out)
    assert "1 text with half a character" in told.stderr
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["text"], row["more"]) for row in rows] == [
        ("1", "a b", ""),
        ("2", "c \ufffd", "x"),
    ]


def test_rows_without_an_answer_are_in_the_exit_code(
    run: Callable[..., Any], folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(self: Opened, texts: Any, policy: Any = None) -> Any:
        shares = np.full(len(texts), 0.9)
        shares[3] = np.nan
        steps = np.ones(len(texts))
        errors = {3: TimeoutError("no answer in time")}
        return SimpleNamespace(
            labels=["yes"] * len(texts), probabilities=shares, exit_step=steps, errors=errors
        )

    monkeypatch.setattr(Opened, "answer", answer)
    out = tmp_path / "out.csv"
    told = run("predict", folders.export, "--texts", folders.fresh, "--out", out, code=1)
    said = " ".join(told.stderr.split())
    assert "1 text without an answer: TimeoutError: no answer in time" in said
    with out.open(newline="") as file:
        assert [row["predicted_label"] for row in csv.DictReader(file)].count("") == 1
