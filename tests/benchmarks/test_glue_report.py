"""The report from the committed results alone: all of them are read, and the fair comparison gives known numbers."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.files import DataError, with_digest
from benchmarks.glue.cli import app
from benchmarks.glue.report import (
    COMPARED,
    PARTS,
    fair_gaps,
    headline,
    held_out,
    page,
    repeats,
    run_rows,
    summary,
)
from benchmarks.glue.report.groups import BLIND, BLIND_FAIR, Group, choose, score_at
from benchmarks.glue.report.summary import compared_groups
from benchmarks.glue.results import Result, read_all

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="session")
def results() -> list[Result]:
    return read_all(RESULTS / "glue")


@pytest.fixture(scope="session")
def found(results: list[Result]) -> dict[str, Any]:
    return summary(results)


def test_all_committed_results_are_read_whatever_version_wrote_them(results: list[Result]) -> None:
    assert len(results) >= 410
    assert {"palbert-deep", "palbert-prior", "palbert-joint"} <= {
        result["recipe"] for result in results
    }
    others = [folder for folder in (RESULTS / "repeated", RESULTS / "halting") if folder.is_dir()]
    assert all(read_all(folder) for folder in others)


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [("minilm", (0.6, 1.4, 1.6)), ("mpnet", (0.7, 1.3, 2.4))],
)
def test_the_fair_comparison_against_a_blind_choice(
    results: list[Result], backbone: str, expected: Sequence[float]
) -> None:
    # Chosen on held-out rows as all else is. The numbers were computed by independent code, which
    # drew a straight line between two thresholds of F1 and correlations too; where held-out rows
    # tie, the cheaper step counts here.
    groups = compared_groups(results)[backbone]
    for speed_up, gap in zip((1.5, 2.0, 3.0), expected, strict=True):
        of_task = fair_gaps(groups, speed_up, recipe="ponder")
        assert statistics.fmean(of_task.values()) == pytest.approx(gap, abs=0.25)
        bound = fair_gaps(groups, speed_up, BLIND, recipe="ponder")
        assert statistics.fmean(bound.values()) < statistics.fmean(of_task.values())


def test_a_common_policy_changes_the_order_of_the_recipes(found: dict[str, Any]) -> None:
    by_confidence = found["minilm"]["2"]["by_confidence"]
    for name, expected in {"deebert": 74.2, "ponder": 72.4, "palbert": 72.0}.items():
        assert by_confidence[name] == pytest.approx(expected, abs=0.06)
    assert by_confidence["deebert"] > by_confidence["pabee"] > by_confidence["ponder"]


def test_a_default_is_chosen_on_held_out_rows(results: list[Result]) -> None:
    shown = held_out(results)
    assert "| minilm | deebert | 77.1 | 76.3 | 76.3 | 73.8 |" in shown
    assert "| mpnet | deebert | 86.6 | 85.9 | 84.5 | 83.4 |" in shown


def test_the_summary_keeps_its_form_and_gains_the_new_rivals(found: dict[str, Any]) -> None:
    assert found["default"] in COMPARED
    assert {"blind_fair", "deebert", "static_taught", "blind", "static", "vanilla"} <= set(COMPARED)
    for backbone in ("minilm", "mpnet"):
        assert list(found[backbone]) == ["1", "1.5", "2", "3"]
        for scores in found[backbone].values():
            assert all(
                set(of_task) == set(COMPARED)
                for of_task in (scores["macro"], *scores["tasks"].values())
            )
            assert scores["macro"]["ponder"] is not None
    assert found["minilm"]["2"]["tasks"]["Banking77"]["ponder"] == pytest.approx(
        92.955616
    )  # as it was published
    assert found["mpnet"]["3"]["tasks"]["STS-B"]["blind"] == pytest.approx(88.404753)
    json.dumps(found, allow_nan=False)


def test_every_part_is_markdown_and_names_its_rows(results: list[Result]) -> None:
    assert "blind, chosen on held-out rows" in headline(results)
    whole = page(results)
    assert whole.count("\n## ") >= 3
    for title in ("Scores", "Ablation", "Every run"):
        assert f"### {title}\n" in whole
    assert set(PARTS) == {"scores", "ablation", "runs"}
    assert all(line.endswith(" |") for line in whole.splitlines() if line.startswith("| "))
    assert "+ all four (PALBERT)" in page(results, ["ablation"], backbone="minilm")
    assert "mpnet" not in page(results, ["scores"], backbone="minilm")


def test_repeats_stand_beside_the_first_run(results: list[Result]) -> None:
    table = repeats(results, read_all(RESULTS / "repeated"))
    assert "| STS-B | mpnet | vanilla | 0 |" in table
    first, again = table.splitlines()[2].split("|")[5:7]
    assert float(first) > 0
    assert float(again) > 0


def test_files_are_written_from_the_command_line(tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in (RESULTS / "glue").glob("*-minilm-*-s0-*.json"):
        if "banking77" in path.name or "sts-b" in path.name:
            shutil.copy(path, few)
    done = CliRunner().invoke(
        app, ["report", "--results", str(few), "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    made = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")
    }
    assert made == {"results-summary.json"}
    shown = CliRunner().invoke(app, ["report", "--results", str(few), "--part", "scores"])
    assert "| STS-B |" in shown.stdout


# ---- Rules, on results that are made by hand ------------------------------------------------------------------------


def made(
    metrics: dict[str, float], per_step: Sequence[float], held_out: Sequence[float], **config: Any
) -> Result:
    """A result with four steps, whose curve of confidence goes straight through its points."""
    points = {
        "knob": [0.1, 0.5, 0.9],
        "mean_exit_step": [1.0, 2.0, 4.0],
        "score": [0.2, 0.6, 1.0],
        "cost": [1, 1, 1],
    }
    split = {
        "examples": 10,
        "full_depth": {**metrics, "score": per_step[-1]},
        "exits": {**metrics, "score": per_step[1]},
        "per_step": list(per_step),
        "mean_exit_step": 2.0,
        "curves": [{"policy": "confidence", "knob": "threshold", "points": points}],
        "halting": None,
    }
    fields = {
        "task": "RTE",
        "recipe": "ponder",
        "backbone": "b",
        "seed": 0,
        "recipe_options": {},
        "policy": None,
    }
    return Result(
        {
            "format": "ponder-glue-1",
            **{name: {**fields, **config}[name] for name in ("task", "recipe", "backbone")},
            "num_steps": 4,
            "policy": {"name": "confidence", "threshold": 0.5},
            "splits": {"dev": split, "held_out": {**split, "per_step": list(held_out)}},
            "speed_up": {"steps": 2.0, "flops": 1.9, "wall_clock": 1.8},
            "config": {**fields, **config},
        }
    )


def test_an_accuracy_lies_between_two_thresholds_and_f1_at_the_nearest() -> None:
    steps = [0.1, 0.2, 0.3, 0.4]
    held = [0.1, 0.2, 0.3, 0.4]
    accuracy = made({"accuracy": 0.4}, steps, held)
    f1 = made({"accuracy": 0.4, "f1": 0.4}, steps, held)
    assert score_at(accuracy, "confidence", 3.0) == pytest.approx(0.8)
    assert score_at(f1, "confidence", 2.9) == 0.6
    assert score_at(f1, "confidence", 3.2) == 1.0
    assert score_at(accuracy, "confidence", 4.5) is None
    assert score_at(accuracy, "entropy", 2.0) is None


def test_a_blind_choice_is_made_on_held_out_rows_and_judged_on_dev() -> None:
    run = made({"accuracy": 0.4}, per_step=[0.5, 0.9, 0.6, 0.7], held_out=[0.5, 0.6, 0.8, 0.7])
    assert score_at(run, BLIND, 2.0) == pytest.approx(0.9)  # the best of dev itself
    assert score_at(run, BLIND_FAIR, 3.0) == pytest.approx(
        0.6
    )  # held out, step 3 is the best, on dev it is not
    assert score_at(run, BLIND_FAIR, 2.0) == pytest.approx(
        0.55
    )  # a coin between steps 1 and 3 beats step 2


def test_groups_are_by_seed_and_a_choice_is_by_held_out_rows() -> None:
    runs = [made({"accuracy": s}, [s] * 4, [s] * 4, seed=n) for n, s in enumerate((0.5, 0.9, 0.6))]
    other = made(
        {"accuracy": 0.1}, [1.0, 0.1, 1.0, 1.0], [1.0] * 4, lr=1.0
    )  # better on dev alone, at full depth
    group = choose([*runs, other])["ponder", "RTE"]
    assert isinstance(group, Group)
    assert [run.seed for run in group.runs] == [0, 1, 2]
    assert group.by_seed(1.0, "confidence") == {0: 50.0, 1: 90.0, 2: 60.0}
    assert group.at(1.0, "confidence") == 60.0


def test_an_edited_file_is_refused(results: list[Result], tmp_path: Path) -> None:
    path = results[0].path
    assert path is not None
    edited = tmp_path / path.name
    data = json.loads(path.read_text())
    edited.write_text(json.dumps({**data, "num_steps": 7}))
    with pytest.raises(DataError, match="edited"):
        Result.read(edited)
    edited.write_text(json.dumps(with_digest({"format": "other"})))
    with pytest.raises(DataError, match="format"):
        Result.read(edited)
    edited.write_text("{")
    with pytest.raises(DataError, match="JSON"):
        Result.read(edited)


def test_one_run_is_shown_in_words(results: list[Result]) -> None:
    rows = dict(run_rows(next(result for result in results if result["task"] == "CLINC150")))
    assert rows["score at the exits"].endswith(" %")
    assert "are recognised" in rows["out of scope"]
