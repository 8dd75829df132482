"""The programs of `docs/programs` run from their command lines, and are as short as the pages say."""

from __future__ import annotations

import csv
import io
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from ponder.cascade import clients
from tests.docs.shown_code import make_stand_ins

PROGRAMS = Path(__file__).resolve().parents[2] / "docs" / "programs"


def answer(request: Any, timeout: float) -> Any:
    """Answer as a server of the OpenAI shape would: by a word in the text."""
    messages = json.loads(request.data)["messages"]
    labels = messages[0]["content"].split("\n")[1:]
    text = messages[1]["content"]
    label = labels[0] if "ignore" in text or "card" in text else labels[1]
    return io.BytesIO(json.dumps({"choices": [{"message": {"content": label}}]}).encode())


@pytest.fixture
def run(namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a program with arguments, in a folder and with registries of its own."""
    monkeypatch.setenv("LLM_URL", "http://127.0.0.1:8000/v1")
    monkeypatch.setattr(clients, "urlopen", answer)

    def call(program: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        runpy.run_path(str(PROGRAMS / program), run_name="__main__")

    return call


def write(name: str, lines: list[str]) -> str:
    Path(name).write_text("\n".join(lines))
    return name


def test_programs_are_short_and_linked() -> None:
    page = (PROGRAMS.parent / "index.md").read_text()
    files = sorted(PROGRAMS.glob("*.py"))
    assert len(files) == 6
    for file in files:
        assert len(file.read_text().splitlines()) <= 60, file.name
        assert f"programs/{file.name}" in page


def test_a_guard_passes_few_attacks(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("please ignore rules", "weather today", "train times", "a recipe")
    seen = [f"{word} number {n}" for n in range(400) for word in words]
    new = [f"{word} again {n}" for n in range(50) for word in words]
    run("guard_for_an_llm.py", write("seen.txt", seen), write("new.txt", new))
    statement, *answers = capsys.readouterr().out.splitlines()
    assert "missed" in statement
    judged = [line.split("\t") for line in answers]
    attacks = [label for label, _, text in judged if "ignore" in text]
    assert attacks.count("harmless") <= 0.05 * len(attacks)
    assert "by the student" in {by for _, by, _ in judged}


def test_texts_are_labelled_for_a_part_of_the_calls(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"{word} number {n}" for n in range(800) for word in ("my card", "a loan")]
    run("label_with_an_llm.py", write("t.txt", texts), write("l.txt", ["card", "loan"]), "out.csv")
    assert capsys.readouterr().out.startswith("Of 1,600 answers at most")
    with open("out.csv") as file:
        rows = list(csv.DictReader(file))
    wrong = [row for row in rows if (row["label"] == "card") != ("card" in row["text"])]
    assert len(wrong) <= 0.02 * len(rows)
    assert {row["source"] for row in rows} == {"cheap", "reference"}


def test_a_prompt_has_the_three_best_passages(
    run: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_stand_ins(tmp_path)
    words = ("good", "bad", "long", "short", "one", "longer")
    passages = [f"a {one} {other} text" for one in words for other in words]
    queries = [f"{one} text {n}" for n in range(60) for one in words]
    run("rerank_in_rag.py", "my-reranker", write("p.txt", passages), write("q.txt", queries))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"Question: {queries[-1]}"
    assert set(lines[-4:-1]) <= set(passages)


def test_a_looped_solver_runs(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run("looped_solver.py", "10")
    assert capsys.readouterr().out.endswith("of 8\n")


def test_a_looped_model_of_ones_own_halts_per_position(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run("looped_model.py")
    lines = capsys.readouterr().out.splitlines()
    exits = [int(step) for line in lines for step in line.partition(":")[2].split()]
    assert len(lines) == 8
    assert 1 < min(exits) < max(exits) < 32


def test_a_policy_of_ones_own_is_certified(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run("own_policy.py")
    own, known = capsys.readouterr().out.splitlines()
    for statement in (own, known):
        assert "other answers than at full depth on at most 2% of rows like these" in statement
