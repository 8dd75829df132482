"""Runs and sweeps from the command line to their files, on a tiny backbone and tiny files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import EvalPrediction
from typer.testing import CliRunner

from benchmarks import tasks
from benchmarks.command_line import parse_fields
from benchmarks.examples import load_tokenizer, tokenize
from benchmarks.glue import sweep as sweeps
from benchmarks.glue import training
from benchmarks.glue.bootstrap import paired_bootstrap
from benchmarks.glue.cli import app
from benchmarks.glue.config import RunConfig
from benchmarks.glue.results import Result, read_all
from benchmarks.glue.rows import unpack_rows
from benchmarks.glue.run import run
from benchmarks.glue.training import start_at, train
from ponder import Trajectory, policies
from ponder.errors import ArgumentError
from ponder.integrations.transformers import PonderForSequenceClassification

# One of every build of heads, stages and policies; the others differ in numbers.
RECIPES = ["deebert", "frozen", "pabee", "palbert", "static", "vanilla"]


def config(backbone: str, **changes: Any) -> RunConfig:
    fields = {
        "task": "RTE",
        "recipe": "palbert",
        "backbone": backbone,
        "epochs": 1,
        "batch_size": 16,
        "lr": 1e-3,
    }
    return RunConfig(**{**fields, **changes})


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("quick", [True, False])
def test_bfloat16_is_left_to_processors_that_are_quick_at_it(
    quick: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A product in bfloat16 took 80 times as long as in float32 on a processor without AVX-512.
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(training, "quick_bf16", lambda: quick)
    made = training._arguments(RunConfig("RTE", "vanilla", bf16=True), tmp_path, 32, progress=False)
    assert made.bf16 is quick


def test_epochs_are_selected_by_rows_and_labels_of_one_order(
    monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    """The trainer groups rows by length, and a record has them as they are in the data."""
    labels = np.arange(20) % 3 == 0
    logits = torch.nn.functional.one_hot(torch.tensor(labels).long(), 2)
    every_step = SimpleNamespace(outputs=logits[:, None].expand(-1, 4, -1).float())
    monkeypatch.setattr(training, "record", lambda model, data: every_step)
    model = training.build(config(backbone, recipe="pabee"), num_labels=2)
    data = Dataset.from_dict({"labels": labels.astype(int)})
    grouped = EvalPrediction(predictions=np.zeros((20, 2)), label_ids=np.sort(labels).astype(int))
    score = training._score(tasks.get("RTE"), model, data)(grouped)
    assert score == {"score": 1.0}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs_and_writes_a_result_that_is_read_again(
    recipe: str, backbone: str, glue_dir: Path, tmp_path: Path
) -> None:
    arguments = (
        *(
            "run",
            "--task",
            "rte",
            "--recipe",
            recipe,
            "--backbone",
            backbone,
            "--glue-dir",
            glue_dir,
        ),
        *(
            "--set",
            "epochs=1",
            "--set",
            "batch_size=16",
            "--out",
            tmp_path / "out",
            "--work",
            tmp_path / "work",
        ),
    )
    done = invoke(*arguments)
    again = invoke(*arguments)
    assert done.exit_code == again.exit_code == 0, done.output
    assert done.stdout == again.stdout  # read, and not measured once more
    (path,) = (tmp_path / "out").glob("*.json")
    result = Result.read(path)
    dev = result["splits"]["dev"]
    assert (result["task"], result["recipe"], result["num_steps"]) == ("RTE", recipe, 4)
    assert sum(dev["exit_histogram"]) == dev["examples"] == 20
    assert len(dev["per_step"]) == 4
    assert result["splits"]["held_out"]["examples"] == 6
    assert len(result["training"]) == (2 if recipe in ("deebert", "frozen") else 1)
    assert all(stage["epochs"] == 1 for stage in result["training"])
    assert math.isclose(result["speed_up"]["steps"], 4 / dev["mean_exit_step"])
    rows = unpack_rows(dev["rows"])
    labels = np.array(tasks.get("RTE").load(glue_dir, ["dev"])["dev"]["label"])
    steps = [np.mean(answers == labels) for answers in rows["answers"].T]
    assert steps == pytest.approx(dev["per_step"])
    assert rows["confidences"].shape == rows["answers"].shape
    assert (dev["halting"] is not None) == (recipe == "palbert")
    if recipe == "vanilla":
        assert result["speed_up"]["steps"] == result["speed_up"]["flops"] == 1.0
        assert dev["exits"] == dev["full_depth"]
    assert result.is_mean
    assert not [left for left in (tmp_path / "work").iterdir() if left.name != "vanilla"]


def test_a_recipe_that_begins_plain_goes_on_from_the_one_vanilla_model(
    backbone: str, glue_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(paired_bootstrap.__kwdefaults__, "resamples", 50)
    first = run(
        config(backbone, recipe="deebert"), glue_dir, tmp_path, tmp_path / "work", progress=False
    )
    other = run(
        config(backbone, recipe="frozen"), glue_dir, tmp_path, tmp_path / "work", progress=False
    )
    plain = run(
        config(backbone, recipe="vanilla"), glue_dir, tmp_path, tmp_path / "work", progress=False
    )
    assert first["training"][0] == other["training"][0]  # seconds included: it was trained once

    folders = ("--first", tmp_path, "--second", tmp_path, "--out", tmp_path)
    compared = invoke("bootstrap", *folders, "--glue-dir", glue_dir)
    assert compared.exit_code == 0, compared.output
    (row,) = json.loads((tmp_path / "frozen-deebert.json").read_text())["rows"]
    assert (row["task"], row["seeds"]) == ("RTE", [0])
    assert row["low"] <= row["gap"] <= row["high"]
    depth = [each["splits"]["dev"]["full_depth"] for each in (first, plain)]
    assert (
        depth[0] == depth[1]
    )  # DeeBERT's encoder and last head are frozen, and the seed is the same
    assert len(list((tmp_path / "work" / "vanilla").iterdir())) == 1


def test_a_model_and_its_trajectories_are_kept_where_they_are_asked_for(
    backbone: str, glue_dir: Path, tmp_path: Path
) -> None:
    settings = config(backbone)
    done = run(
        settings,
        glue_dir,
        tmp_path / "out",
        tmp_path / "work",
        keep=tmp_path / "kept",
        progress=False,
    )
    recorded = Trajectory.load(tmp_path / "kept" / f"{settings.key}-dev.safetensors")
    exits = recorded.replay(policies.from_dict(done["policy"]))
    assert float(exits.exit_step.double().mean()) == pytest.approx(
        done["splits"]["dev"]["mean_exit_step"]
    )
    model = PonderForSequenceClassification.from_pretrained(tmp_path / "kept" / settings.key).eval()
    assert model.ponder.weights_digest() == done["weights"] == recorded.weights
    texts = [
        [row["sentence1"], row["sentence2"]]
        for row in tasks.get("RTE").load(glue_dir, ["dev"])["dev"]
    ]
    torch.testing.assert_close(model.predict(texts).outputs, exits.outputs, atol=1e-5, rtol=1e-4)


def test_a_cut_off_run_goes_on_and_ends_as_one_that_was_not(
    backbone: str, glue_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.glue import training

    settings = config(backbone, epochs=3)
    whole = run(settings, glue_dir, tmp_path / "whole", tmp_path / "work", progress=False)

    def cut_off(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.epoch >= 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.StageLog, "on_step_begin", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run(settings, glue_dir, tmp_path / "cut", tmp_path / "other", progress=False)
    assert any((tmp_path / "other").iterdir())
    again = run(settings, glue_dir, tmp_path / "cut", tmp_path / "other", progress=False)
    assert again["weights"] == whole["weights"]
    assert again["training"][0]["held_out_scores"] == whole["training"][0]["held_out_scores"]


def test_regression_heads_start_at_the_mean_label(
    backbone: str, glue_dir: Path, tmp_path: Path
) -> None:
    # TRAP: heads that start far from the labels wrecked the encoder wherever all steps are trained
    # at once.
    settings = config(backbone, task="STS-B", recipe="pabee", lr=1e-9)
    task = tasks.get("STS-B")
    ready = tokenize(task.load(glue_dir, ["train"])["train"], load_tokenizer(backbone), 32)
    model, _ = train(settings, task, ready, ready, tmp_path, progress=False)
    biases = [
        module.bias for module in model.ponder.head.modules() if isinstance(module, torch.nn.Linear)
    ]
    assert len(biases) == model.ponder.num_steps
    torch.testing.assert_close(torch.cat(biases), torch.full((4,), float(np.mean(ready["labels"]))))
    start_at(model, 1.0)
    assert all(
        (module.bias == 1).all()
        for module in model.ponder.head.modules()
        if isinstance(module, torch.nn.Linear)
    )


def test_a_policy_that_does_not_serve_a_task_is_refused_before_training(
    backbone: str, glue_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match="regression"):
        run(
            config(backbone, task="STS-B", recipe="deebert"),
            glue_dir,
            tmp_path,
            tmp_path / "work",
            progress=False,
        )


def test_names_of_runs_do_not_change() -> None:
    # TRAP: a field that is added, or a default that moves, would make strangers of all committed
    # results.
    pays = {
        "epochs": 8,
        "stop_after": 2,
        "lr": 1e-4,
        "head_lr": 2e-3,
        "lambda_lr": 1e-4,
        "bf16": True,
    }
    assert RunConfig("Banking77", "vanilla", **pays).key == "banking77-minilm-vanilla-s0-8e00d2663d"
    assert parse_fields("--set", ["a=1e-4", "b=true", "c=text"]) == {
        "a": 1e-4,
        "b": True,
        "c": "text",
    }


def test_a_sweep_chooses_a_point_repeats_it_and_goes_on_after_a_failure(
    backbone: str, glue_dir: Path, tmp_path: Path
) -> None:
    suite = tmp_path / "own.json"
    content = {
        "description": "Two rates, and a recipe with one of its own.",
        "tasks": ["RTE", "STS-B"],
        "recipes": ["palbert", "deebert"],
        "fixed": {"epochs": 1, "max_train": 32, "batch_size": 16},
        "by_task": {"STS-B": {"lr": 1e-3}},
        "grid": {"lr": [1e-4, 1e-3]},
        "seeds": 2,
    }
    suite.write_text(json.dumps(content))
    arguments = (
        "sweep",
        "--suite",
        suite,
        "--recipes",
        "palbert",
        "--backbone",
        backbone,
        "--out",
        tmp_path / "out",
    )
    folders = ("--glue-dir", glue_dir, "--work", tmp_path / "work")
    failed = invoke(*arguments, "--glue-dir", tmp_path, "--work", tmp_path / "work")
    assert failed.exit_code == 1
    assert (
        "there is no such file"
        in (tmp_path / "out" / "failed").glob("*.json").__next__().read_text()
    )
    assert [cell.label for cell in sweeps.suite_named(str(suite)).cells("x")] == [
        *("palbert on RTE", "deebert on RTE", "palbert on STS-B"),
    ]
    done = invoke(*arguments, *folders)
    assert done.exit_code == 0, done.output
    assert not any((tmp_path / "out" / "failed").iterdir())
    results = read_all(tmp_path / "out")
    # DeeBERT's entropy is not defined on STS-B; the rate of STS-B is settled, so that it has no
    # grid.
    assert sorted((r["task"], r["recipe"], r.seed) for r in results) == [
        *(("RTE", "palbert", seed) for seed in (0, 1)),
        *(("STS-B", "palbert", seed) for seed in (0, 1)),
    ]
    assert len(read_all(tmp_path / "out" / "grid")) == 2
    (chosen,) = (tmp_path / "out" / "chosen").glob("*.json")
    assert len(json.loads(chosen.read_text())["tried"]) == 2
    times = {
        path: path.stat().st_mtime_ns
        for path in (
            *(tmp_path / "out").glob("*.json"),
            *(tmp_path / "out" / "grid").glob("*.json"),
        )
    }
    invoke(*arguments, *folders)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_every_suite_makes_runs_and_has_them() -> None:
    for name in sweeps.suites():
        suite = sweeps.suite_named(name)
        cells = suite.cells("minilm")
        assert cells, name
        if not suite.grid:
            for point in (point for cell in cells for point in cell.points):
                data = {"task": point.task, "recipe": point.recipe, "config": point.to_dict()}
                assert suite.has(Result(data)), point
                other = {**data, "config": {**point.to_dict(), "epochs": 77}}
                assert not suite.has(Result(other))
