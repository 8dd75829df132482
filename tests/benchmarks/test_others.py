"""Every other benchmark in its smallest size, and what it says of the committed results."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import benchmarks
from benchmarks import backbones, graded
from benchmarks.advice import cli as advice
from benchmarks.advice import measuring as advice_measuring
from benchmarks.files import DataError
from benchmarks.finetuned import cli as finetuned
from benchmarks.finetuned import demo as demonstration
from benchmarks.gallery.drawing import FIGURES, draw
from benchmarks.glue.config import RunConfig
from benchmarks.glue.run import run
from benchmarks.loops.levels import report
from benchmarks.parity import cli as parity
from benchmarks.risk import cli as risk
from benchmarks.risk.simulation import synthetic_scene, true_risk
from benchmarks.shared import cli as shared
from benchmarks.speed import cli as speed
from benchmarks.speed.subjects import cells, figure, interleaved, ratio
from ponder import policies
from ponder.advice import race, timing

MODULES = [
    module.name
    for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")
    if not module.name.endswith("__main__")
]


def invoke(app: typer.Typer, *arguments: object) -> str:
    done = CliRunner().invoke(
        app, [str(argument) for argument in arguments], env={"COLUMNS": "200"}
    )
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in doctest.DocTestFinder(exclude_empty=True).find(
        module, name, extraglobs={"torch": torch}
    ):
        assert runner.run(test).failed == 0, f"{test.name}: see the output above"


# ---- Fine-tuned classifiers ------------------------------------------------------------------------------------------


def test_the_demo_ends_with_the_table_of_advise(
    backbone: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(race.Race, "_int8", lambda self: None)
    demonstration.demo(tmp_path, backbone=backbone, scale=0.1)
    said = capsys.readouterr().out
    assert said.startswith(f"A {backbone} is fine-tuned on 160 generated reviews")
    assert "▸" in said
    assert (tmp_path / "winner" / "report.html").exists()


def test_advice_is_held_against_test_texts(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race.Race, "_int8", lambda self: None)
    monkeypatch.setattr(timing, "clock", timing.clock)  # which the benchmark sets
    monkeypatch.setattr(
        advice_measuring,
        "generated",
        lambda split, size, seed: demonstration.generated(split, 200, seed),
    )
    said = invoke(
        advice.app,
        "run",
        "--task",
        "generated",
        "--backbone",
        backbone,
        "--work",
        tmp_path,
        "--out",
        tmp_path,
    )
    (path,) = tmp_path.glob("generated*.json")
    found = json.loads(path.read_text())
    assert found["test"]["rows"] == 200
    assert found["test"]["slower_than_best"] >= 1.0 or found["winner"] == "as it is"
    assert found["winner"] in said


def test_a_measurement_of_a_fine_tuned_model_is_written_down(
    backbone: str, glue_dir: Path, tmp_path: Path
) -> None:
    out = ("--work", tmp_path / "work", "--out", tmp_path / "out")
    sizes = ("--train", 64, "--texts", 200, "--disagreement", 0.2)
    invoke(
        finetuned.app,
        "run",
        "--task",
        "sst2",
        "--glue-dir",
        glue_dir,
        "--backbone",
        backbone,
        *sizes,
        *out,
    )
    (path,) = (tmp_path / "out").glob("sst-2-tiny-exits-s0.json")
    result = json.loads(path.read_text())
    assert result["test"]["rows"] == 20
    assert result["exits"]["rows"] == 200
    assert result["exits"]["speed_up_in_steps"] >= 1
    assert 0 <= result["test"]["disagreement"] <= 1


def test_traffic_is_mostly_easy_and_no_text_is_in_two_splits() -> None:
    made = {
        split: graded.traffic("negation", split, 200, demonstration.SHARES)
        for split in graded.SPLITS
    }
    levels = list(made["train"]["difficulty"])
    assert [levels.count(level) for level in range(4)] == [120, 50, 20, 10]
    assert list(made["train"]["label"]).count(0) == 100
    texts = [set(part["sentence1"]) for part in made.values()]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert graded.names() == ["agreement", "negation"]
    other = graded.load("agreement", train=16, dev=8, test=8)["train"]
    assert (
        other["sentence1"]
        == graded.load("agreement", train=16, dev=8, test=8)["train"]["sentence1"]
    )


# ---- Parity ----------------------------------------------------------------------------------------------------------


def test_parity_runs_in_its_smallest_size_and_goes_on(tmp_path: Path) -> None:
    arguments = ("--steps", 2, "--seed", 0, "--seed", 1, "--out", tmp_path)
    assert invoke(parity.app, *arguments) == invoke(parity.app, *arguments)
    result = parity.results(tmp_path)[1]
    assert result["seed"] == 1
    assert [run["scene"] for run in result["runs"]] == ["interpolation", "extrapolation"]
    assert result["runs"][1]["test"]["last step"]["mean_exit_step"] == 10.0


def test_a_weight_shared_encoder_is_taught_and_kept(
    backbone: str, glue_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PONDER_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="has not been made yet"):
        backbones.resolve("shared")
    said = invoke(
        *(shared.app, "--teacher", backbone, "--glue-dir", glue_dir, "--text-dir", tmp_path),
        *("--tasks", "RTE,SST-2", "--updates", 20),
    )
    assert "20 updates" in said
    config = RunConfig("RTE", "palbert", "shared", epochs=1, batch_size=16)
    dev = run(config, glue_dir, tmp_path / "out", tmp_path / "work", progress=False)["splits"][
        "dev"
    ]
    assert len(dev["per_step"]) == len(dev["beyond"]) == 4  # one layer, as often as asked


# ---- Risk and speed --------------------------------------------------------------------------------------------------


def test_promises_are_counted_against_the_true_risk(tmp_path: Path) -> None:
    said = invoke(risk.app, "--trials", 20, "--rows", 300, "--out", tmp_path)
    outcomes = json.loads((tmp_path / "risk.json").read_text())["outcomes"]
    assert len(outcomes) == 12
    assert all(outcome["kept"] for outcome in outcomes)
    assert {outcome["confidence"] for outcome in outcomes if outcome["bound"] == "conformal"} == {
        None
    }
    assert "hoeffding" in said


def test_the_closed_form_of_the_risk_is_that_of_many_rows() -> None:
    drawn = synthetic_scene(200_000).draw(torch.Generator().manual_seed(0))
    rows = np.arange(len(drawn))
    for q in (0.0, 0.3, 0.8):
        steps = drawn.exit_steps(policies.Quantile(q)) - 1
        wrong = ~drawn.correct()
        differs = ~drawn.agreement()
        assert differs[rows, steps].mean() == pytest.approx(true_risk("disagreement", q), abs=0.005)
        assert wrong[rows, steps].mean() == pytest.approx(true_risk("error", q), abs=0.005)
        gap = wrong[rows, steps].mean() - wrong[:, -1].mean()
        assert gap == pytest.approx(true_risk("error_gap", q), abs=0.005)


def test_speed_runs_quickly_on_small_models(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        said = invoke(speed.app, "--quick", "--sections", "2,3", "--threads", 1, "--out", tmp_path)
    finally:
        torch.set_num_threads(threads)
    result = json.loads((tmp_path / "exiting.json").read_text())
    assert "ALBERT-base, uniform, batch 1" in said
    assert "MiniLM's sizes, uniform, batch 8" in said
    assert {"uniform", "early-heavy", "late-heavy", "recorded"} == {
        one["case"].split(", ")[1] for one in result["figures"]
    }
    assert result["figures"][0]["steps"] > 1


def test_a_ratio_is_the_median_of_interleaved_rounds_and_a_goal_is_kept_or_missed() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    interleaved(calls, rounds=2)
    assert order == ["a", "b", "b", "a", "a", "b"]
    value = ratio({"a": [1.0, 4.0, 2.0], "b": [1.0, 1.0, 1.0]}, "a", "b")
    assert (value.median, value.low, value.high) == (2.0, 1.0, 4.0)
    missed = figure("exiting", "case", "ratio", value, at_least=2.5)
    assert cells(missed)[2:] == ("2.00", "1.00–4.00", "≥ 2.5", "missed")


def test_exits_and_int8_together_are_held_against_their_product() -> None:
    from benchmarks.speed.exporting import _of_product

    seconds = {"fp32": [8.0], "fp32, exits": [4.0], "int8": [2.0], "int8, exits": [2.0]}
    assert _of_product(seconds, "int8").median == 0.5  # ×2 and ×4 should be ×8, and are ×4


# ---- Committed results -----------------------------------------------------------------------------------------------


def test_committed_results_make_tables_and_figures(tmp_path: Path) -> None:
    pages = report.markdown()
    assert all(f"### {name}" in pages for name in ("Prefix-sums", "Mazes"))
    assert [path.stem for path in draw(tmp_path)] == list(FIGURES)
    assert all("<svg" in path.read_text() for path in tmp_path.iterdir())
