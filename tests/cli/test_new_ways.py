"""`certify`, `cascade` and `advise`: thresholds on anybody's answers, students, and the race."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ponder
from ponder.cascade import Cascade
from tests.cli.conftest import Folders
from tests.compare import assert_same_rows, clear_rows
from tests.integrations.encoders import some_texts


def answers(path: Path, rows: int, seed: int = 0, wrong: float = 0.0) -> Path:
    """Answers that are right as often as they are sure, and wrong more often by `wrong`."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "a", "p", "b"])
        for n in range(rows):
            sure = draw.random() ** 0.3
            writer.writerow([n, "yes" if draw.random() < sure - wrong else "no", sure, "yes"])
    return path


COLUMNS = ("--answer", "a", "--confidence-column", "p", "--reference", "b")


def test_a_bar_is_certified_and_judged_on_fresh_answers(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    threshold = tmp_path / "threshold.json"
    found = run(
        "certify", answers(tmp_path / "a.csv", 4000), *COLUMNS, "--out", threshold, "--json"
    )
    card = json.loads(found.output)
    kept = json.loads(threshold.read_text())
    assert {name: kept[name] for name in card} == card
    assert 0.1 < card["taken"] < 0.9
    assert card["observed"] <= 0.02
    held = run("check", threshold, answers(tmp_path / "fresh.csv", 4000, seed=1), code=0)
    assert "The promise is kept" in held.output
    assert (
        "broken"
        in run(
            "check", threshold, answers(tmp_path / "worse.csv", 4000, 2, wrong=0.2), code=1
        ).output
    )
    run("check", threshold, answers(tmp_path / "few.csv", 5, 3), code=3)
    again = run("check", threshold, tmp_path / "a.csv", code=2).stderr
    assert "--texts: expected fresh texts" in " ".join(again.split())
    opened = ponder.open(threshold)
    assert opened.statement == card["statement"]
    assert opened.takes([1.0, 0.0]).tolist() == [True, False]
    threshold.write_text(json.dumps({**kept, "level": 0.001}))
    edited = run("check", threshold, tmp_path / "fresh.csv", code=2).stderr
    assert "Certify again" in " ".join(edited.split())


def test_a_promise_about_a_file_alone_asks_less_and_is_not_for_fresh_answers(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    file = answers(tmp_path / "a.csv", 4000)
    lines = file.read_text().splitlines()
    # The rows are in a random order, so these are drawn at random.
    without = [line.rpartition(",")[0] + "," for line in lines[1001:]]
    file.write_text("\n".join([*lines[:1001], *without]))
    thresholds = []
    for options in ((), ("--finite",)):
        out = tmp_path / f"threshold{len(options)}.json"
        found = run("certify", file, *COLUMNS, *options, "--out", out, "--json")
        thresholds.append(json.loads(found.output)["threshold"])
        shown = run("certify", file, *COLUMNS, *options, "--out", out).output
        assert ("of the 3000 others" in shown) == bool(options)
        assert ("3000 rows without a reference" in shown) == (not options)
    assert thresholds[1] < thresholds[0]
    refused = run("check", out, answers(tmp_path / "fresh.csv", 400, seed=1), code=2).stderr
    assert "a promise about rows to come" in " ".join(refused.split())


def test_bad_answers_are_named(run: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "threshold.json"
    few = answers(tmp_path / "few.csv", 40)
    assert "149 rows or more" in " ".join(
        run("certify", few, *COLUMNS, "--out", out, code=2).output.split()
    )
    assert "no column 'confidence'" in " ".join(
        run("certify", few, "--answer", "a", "--out", out, code=2).output.split()
    )
    for scale in (100.0, -1.0):  # percentages, logits
        few.write_text("a,p,b\n" + f"yes,{scale},yes\n" * 400)
        said = " ".join(run("certify", few, *COLUMNS, "--out", out, code=2).output.split())
        assert "--confidence-column: expected probabilities in [0, 1]" in said
    header, *lines = answers(tmp_path / "once.csv", 400).read_text().splitlines(keepends=True)
    few.write_text("".join([header, *lines, *lines]))
    said = " ".join(run("certify", few, *COLUMNS, "--out", out, code=2).output.split())
    assert "2 times, or a multiple of that" in said
    few.write_text("a,p,b\n" + "yes,1.0,no\n" * 400 + "yes,0.5,\n" * 5)
    said = " ".join(run("certify", few, *COLUMNS, "--out", out).output.split())
    assert "No promise of 2%: of 400 rows 400 differ" in said
    assert "5 rows without a reference" in said
    assert not out.exists()
    out.write_text('{"format": "another"}')
    run("check", out, few, code=2)


def test_certify_needs_no_torch(tmp_path: Path) -> None:
    given = [
        str(answers(tmp_path / "a.csv", 2000)),
        *COLUMNS,
        "--out",
        str(tmp_path / "threshold.json"),
    ]
    code = "import sys; sys.modules['torch'] = None; from ponder.cli.app import app; app(['certify', *sys.argv[1:]])"
    subprocess.run([sys.executable, "-c", code, *given], check=True, capture_output=True)


def test_a_student_goes_in_front_of_a_model_and_its_folder_is_taken(
    run: Callable[..., Any], folders: Folders, tmp_path: Path
) -> None:
    out = tmp_path / "cascade"
    options = ("--texts", folders.texts, "--disagreement", 0.3, "--json", "--out", out)
    card = json.loads(
        run("cascade", folders.model, *options, "--teach", folders.fresh).output.splitlines()[-1]
    )
    assert len(card["shares"]) == 2
    assert card["chosen_on"] + card["certified_on"] == 160  # what more texts teach does not certify
    assert "of 160" in (out / "report.html").read_text(encoding="utf-8")
    found = tmp_path / "answers.csv"
    run("predict", out, "--texts", folders.fresh, "--out", found)
    with found.open() as file:
        assert len(list(csv.DictReader(file))) == 300
    told = run("check", out, "--texts", folders.texts, "--disagreement", 0.9, code=2).stderr
    assert "400 of 400 rows that taught" in " ".join(told.split())
    fresh = tmp_path / "fresh.csv"
    fresh.write_text("text\n" + "\n".join(some_texts(1000)[700:]))
    assert "is kept" in run("check", out, "--texts", fresh, "--disagreement", 0.9).output


WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = sys.modules["transformers"] = sys.modules["sklearn"] = None
import ponder.cascade
answers = ponder.cascade.Cascade.load(sys.argv[1]).predict(sys.argv[2:])
print(json.dumps([answers.labels, answers.stage.tolist()]))
"""


@pytest.mark.parametrize("model", ["exits", "export"])
def test_cascades_are_exported_and_run_without_torch(
    run: Callable[..., Any], folders: Folders, tmp_path: Path, model: str
) -> None:
    made, out = tmp_path / "cascade", tmp_path / "onnx"
    said = make_cascade(run, folders, getattr(folders, model), made)
    assert "you no longer need the model" in " ".join(said.split())
    run("export", made, "--to", "onnx", "--out", out)
    texts = some_texts(20)
    code = [sys.executable, "-c", WITHOUT_TORCH, str(out), *texts]
    found = json.loads(subprocess.run(code, capture_output=True, text=True, check=True).stdout)
    cascade = Cascade.load(made)
    answers = cascade.predict(texts)
    clear = clear_rows(cascade.record(texts), cascade.policy)
    assert_same_rows(found[0], answers.labels, clear)
    assert_same_rows(found[1], answers.stage, clear)


def test_a_cascade_of_a_plain_model_is_certified_again_in_int8(
    run: Callable[..., Any], folders: Folders, tmp_path: Path
) -> None:
    made, small = tmp_path / "cascade", tmp_path / "int8"
    make_cascade(run, folders, folders.model, made)
    run("export", made, "--int8", *options_of(folders), "--out", small)
    assert len(Cascade.load(small).predict(some_texts(20))) == 20


def options_of(folders: Folders) -> tuple[object, ...]:
    return ("--texts", folders.texts, "--disagreement", 0.3)


def make_cascade(run: Callable[..., Any], folders: Folders, model: Path, out: Path) -> str:
    """Make a cascade in front of a model, and return what the command prints."""
    return str(run("cascade", model, *options_of(folders), "--out", out).output)
