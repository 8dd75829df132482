"""Banking77 and CLINC150, in tiny files of their formats; the real ones where they are at hand."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from test_glue_run import invoke

from benchmarks import metrics, tasks
from benchmarks.glue.config import RunConfig
from benchmarks.glue.report import report
from benchmarks.glue.results import read_all
from benchmarks.significance import replicate
from ponder.errors import ArgumentError, DataError

INTENTS = [f"intent {n:03}" for n in range(150)]
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory):
    """Every class once or twice; what is out of scope is told by its first word."""
    folder = tmp_path_factory.mktemp("text")
    write_banking(folder, [(f"one {n}, is it", name) for n, name in enumerate(INTENTS[:77])] * 2)
    rows = [[f"one {n} is true", name] for n, name in enumerate(INTENTS)]
    outside = [[f"not {n}", "oos"] for n in range(6)]
    full = dict.fromkeys(SPLITS, rows) | {f"oos_{split}": outside for split in SPLITS}
    (folder / "clinc150").mkdir()
    (folder / "clinc150" / "data_full.json").write_text(json.dumps(full))
    return folder


def write_banking(folder, rows, split=None, header=("text", "category")):
    (folder / "banking77").mkdir(exist_ok=True)
    for name in ("train", "test") if split is None else (split,):
        with (folder / "banking77" / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])


def test_both_are_known_beside_those_of_glue():
    assert tasks.names()[-2:] == ("Banking77", "CLINC150")
    assert [tasks.get(name).num_labels for name in ("banking77", "clinc-150")] == [77, 151]
    with pytest.raises(ArgumentError, match=r"one of CoLA, .*, CLINC150"):
        tasks.get("Banking")


def test_banking_is_read_with_its_classes_in_the_order_of_their_names(text_dir):
    loaded = tasks.get("Banking77").load(text_dir)
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 154, "test": 154}
    assert loaded["train"].features["label"].names == INTENTS[:77]
    assert loaded["test"][3] == {"idx": 3, "sentence1": "one 3, is it", "label": 3}  # the comma is part of the text


def test_what_is_out_of_scope_is_the_last_class(text_dir):
    loaded = tasks.get("CLINC150").load(text_dir, ["train", "test"])
    assert list(loaded) == ["train", "test"]
    assert loaded["train"].features["label"].names == [*INTENTS, "oos"]
    assert loaded["test"]["label"][:] == [*range(150), *[150] * 6]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([("a", name) for name in INTENTS[:76]], {}, "expected 77 classes .* got 76"),
        ([("a", "b", "c")], {}, r"train\.csv, row 2: expected 2 columns; got 3"),
        ([("a", "b")], {"header": ("id", "text")}, r"train\.csv, line 1: expected the header text,category"),
        ([("a", "new")], {"split": "test"}, "Banking77, test, row 0: expected .* intent of the training data.*'new'"),
        ([(" ", INTENTS[0])], {"split": "test"}, "Banking77, test, row 0: expected a message"),
        ([("a" * 200_000, INTENTS[0])], {}, r"train\.csv: expected comma-separated values"),  # as an unclosed quote
    ],
)
def test_faults_of_banking_are_named(rows, options, message, tmp_path):
    write_banking(tmp_path, [("a", name) for name in INTENTS[:77]])
    write_banking(tmp_path, rows, **options)
    with pytest.raises(DataError, match=message):
        tasks.get("Banking77").load(tmp_path)


def test_an_empty_file_of_banking_is_named(tmp_path):
    write_banking(tmp_path, [("a", name) for name in INTENTS[:77]])
    (tmp_path / "banking77" / "train.csv").write_text("")
    with pytest.raises(DataError, match=r"train\.csv, line 1: expected the header"):
        tasks.get("Banking77").load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"train": [["a", "b"]]}',
        '{"train": ["a"], "oos_train": []}',
        '{"train": [], "oos_train": [["a", "oos"]]}',
        '{"train": [[null, "b"]], "oos_train": []}',
        '{"train": ["ab"], "oos_train": []}',
        '{"train": [["a", "b", "c"]], "oos_train": []}',
    ],
)
def test_faults_of_clinc_are_named(content, tmp_path):
    (tmp_path / "clinc150").mkdir()
    (tmp_path / "clinc150" / "data_full.json").write_text(content)
    with pytest.raises(DataError, match=r"data_full\.json: expected lists of \[text, intent\] under 'train'"):
        tasks.get("CLINC150").load(tmp_path)


def test_a_missing_folder_and_a_missing_file_name_the_option(tmp_path):
    for folder in (None, tmp_path):
        for name in ("Banking77", "CLINC150"):
            with pytest.raises(DataError, match="--text-dir"):
                tasks.get(name).load(folder)


def test_what_is_out_of_scope_takes_no_part_in_the_score_and_none_in_the_bootstrap():
    task = tasks.get("CLINC150")
    labels = np.array([0, 1, 2, 3, 150, 150])
    predictions = np.array([0, 1, 2, 150, 150, 7])
    assert metrics.score(task, predictions, labels) == {"accuracy": 0.75, "score": 0.75, "out_of_scope_recall": 0.5}
    drawn = replicate(task, {0: {"test": predictions}}, {"test": labels}, count=30).drawn[0]
    generator = np.random.default_rng(0)
    for value in drawn:
        rows = generator.integers(6, size=6)
        inside = rows[labels[rows] != 150]
        assert value == (np.mean(predictions[inside] == labels[inside]) if len(inside) else 0.0)


@pytest.mark.parametrize("task", ["Banking77", "CLINC150"])
def test_the_same_command_runs_and_reports_them(task, backbone, text_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TEXT_DIR", str(text_dir))
    places = ("--out", tmp_path / "out", "--work", tmp_path / "work", "--backbone", backbone)
    budget = ("--epochs", 1, "--head-lr", "1e-2", "--bf16", "--warmup", 0.2, "--early-stopping", 2)
    done = invoke("run", "--task", task, "--recipe", "pabee", *budget, *places, "--quiet")
    assert done.exit_code == 0, done.output
    assert ("out of scope" in done.output) == (task == "CLINC150")
    (result,) = read_all(tmp_path / "out")
    named = {name: result["config"][name] for name in ("head_lr", "bf16", "warmup", "stop_after")}
    assert named == {"head_lr": 1e-2, "bf16": True, "warmup": 0.2, "stop_after": 2}
    assert RunConfig.from_dict(result["config"]).key == result.path.stem
    assert set(result["splits"]) == {"test", "held_out"}
    assert ("out_of_scope_recall" in result["splits"]["test"]["exits"]) == (task == "CLINC150")
    page = report([result], {"--text-dir": text_dir}, draw=False, replicates=100).markdown()
    assert f"| recipe | ×steps | {task} |" in page
    assert "Not made" not in page


def test_a_sweep_mixes_them_with_tasks_of_glue(backbone, glue_dir, text_dir, tmp_path):
    given = ("--suite", "mini", "--tasks", "RTE,Banking77", "--recipes", "vanilla", "--executor", "inline")
    places = ("--out", tmp_path / "out", "--work", tmp_path / "work", "--backbone", backbone)
    done = invoke("sweep", *given, *places, "--glue-dir", glue_dir, "--text-dir", text_dir)
    assert done.exit_code == 0, done.output
    assert [result["task"] for result in read_all(tmp_path / "out")] == ["Banking77", "RTE"]


def test_the_real_files():
    given = os.environ.get("TEXT_DIR")
    folder = Path(given) if given else Path(__file__).parents[2].parent / "shared" / "text"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set TEXT_DIR to one with banking77 and clinc150")
    sizes = {name: {k: len(v) for k, v in tasks.get(name).load(folder).items()} for name in ("Banking77", "CLINC150")}
    assert sizes["Banking77"] == {"train": 10003, "test": 3080}
    assert sizes["CLINC150"] == {"train": 15100, "dev": 3100, "test": 5500}
