"""`ponder export`: graphs that answer as the folder does, and after quantisation a promise of their own."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ponder
from ponder.cli import export
from ponder.errors import PonderError
from ponder.export import OnnxModel
from ponder.integrations.transformers import FinetunedClassifier, fit_exits
from ponder.parts.tasks import task_named
from ponder.policies import Confidence, LastStep
from tests.exits_folder import LONGEST, tiny_classifier
from tests.ponder.cli.test_commands import refused, run, sentences, table
from tests.quick_exports import make_exports_quick
from tests.word_tokenizer import WORDS, save_tokenizer

pytest.importorskip("onnxruntime", reason="exports need the extra onnx")
pytest.importorskip("onnxscript", reason="exports need the extra onnx")
pytestmark = pytest.mark.slow  # exporting takes seconds


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `ponder exits` writes it, of two layers."""
    make_exports_quick()
    folder = tmp_path_factory.mktemp("fitted")
    model = FinetunedClassifier.from_finetuned(tiny_classifier(layers=2))
    rows = [{"input_ids": ids_of(text)} for text in sentences(300)]
    assert fit_exits(model, rows, disagreement=0.1, epochs=4).met
    surest = model.record(rows[:60]).outputs[:, 0].softmax(-1).amax(-1)
    model.policy = Confidence(float(surest.median()))  # half of the texts leave at the first step
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def ids_of(text: str) -> list[int]:
    return [2, *(5 + WORDS.index(word) for word in text.split()), 3][:LONGEST]


def answers(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def exported(fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    done = run("export", fitted, "--to", "onnx", "--out", folder)
    assert done.exit_code == 0, done.output
    assert "Exits and answers are those of the folder" in done.stdout
    return folder


def test_an_export_answers_as_the_folder_does(fitted: Path, exported: Path, tmp_path: Path) -> None:
    rows = [*sentences(60, seed=7), "w1 " * 40, ""]
    path = table(tmp_path / "in.csv", [[row] for row in rows])
    told: dict[str, Any] = {}
    for name, folder in (("exits", fitted), ("onnx", exported)):
        done = run("predict", folder, "--texts", path, "--out", tmp_path / f"{name}.csv")
        assert done.exit_code == 0, done.output
        assert "1 texts were longer than the model takes, and were cut." in done.stderr
        told[name] = answers(tmp_path / f"{name}.csv")
    assert told["exits"] == told["onnx"]
    assert {row["exit_step"] for row in told["onnx"]} == {"1", "2"}
    assert {row["label"] for row in told["onnx"]} <= {"no", "yes"}


def test_without_a_level_an_export_promises_what_the_folder_does(fitted: Path, tmp_path: Path) -> None:
    model = FinetunedClassifier.from_pretrained(fitted)
    rows = [{"input_ids": ids_of(text)} for text in sentences(450, seed=3)]
    assert fit_exits(model, rows, disagreement=0.2, epochs=1).met
    model.save_pretrained(tmp_path / "exits")
    save_tokenizer(tmp_path / "exits")
    path = table(tmp_path / "t.csv", [[text] for text in sentences(450, seed=4)])
    done = run("export", tmp_path / "exits", "--texts", path, "--out", tmp_path / "fp32", "--json")
    assert done.exit_code == 0, done.output
    assert "on all but 20%" in json.loads(done.stdout)["statement"]
    assert export._promised(Confidence(0.9)) == 0.01


def test_after_quantisation_the_threshold_is_chosen_again_against_fp32_at_full_depth(
    fitted: Path, tmp_path: Path
) -> None:
    assert "int8 moves answers" in refused("export", fitted, "--int8", "--out", tmp_path / "none")
    path = table(tmp_path / "t.csv", [[text] for text in sentences(450, seed=3)])
    folder = tmp_path / "int8"
    done = run("export", fitted, "--int8", "--texts", path, "--out", folder, "--disagreement", 0.1, "--json")
    assert done.exit_code == 0, done.output
    card = json.loads(done.stdout)
    assert card["met"] is True
    assert card["columns"] == ["text"]
    assert "Answers as the fp32 model does at full depth on all but 10%" in card["statement"]
    exported = OnnxModel(folder, threads=1)
    assert exported.manifest.int8
    assert exported.policy["name"] == "certified"
    fresh = [{"input_ids": ids_of(text)} for text in sentences(200, seed=11)]
    full = FinetunedClassifier.from_pretrained(fitted).predict(fresh, policy=LastStep()).outputs.argmax(-1)
    found = torch.from_numpy(exported.predict(fresh).outputs).argmax(-1)
    assert (found != full).double().mean() <= 0.1


@pytest.mark.parametrize(
    ("moved", "expected", "written"),
    [
        ({"all": 0, True: 0}, "all", ["all"]),
        ({"all": 9, True: 0}, True, ["all", True]),
        ({"all": 9, True: 30}, "all", ["all", True, "all"]),
    ],
)
def test_all_products_are_quantised_where_the_promise_bears_it(
    moved: dict[Any, int], expected: Any, written: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1,000 texts the first 400 choose; so many of these are answered otherwise."""

    class Answers:
        outputs = torch.tensor([[1.0, 0.0]]).expand(1000, 2)

    def record_of(kind: Any) -> ponder.Trajectory:
        answers = torch.zeros(1000, dtype=torch.long)
        answers[: moved[kind]] = 1
        outputs, labels = torch.eye(2)[answers].unsqueeze(1), torch.zeros_like(answers)
        return ponder.Trajectory(outputs, None, torch.arange(1000), labels=labels, task="classification")

    told: list[Any] = []
    ranges: set[tuple[int, ...]] = set()
    kind_of_head = SimpleNamespace(task=task_named("classification"))
    made = SimpleNamespace(predict=lambda *given, **named: Answers, kind=kind_of_head)
    monkeypatch.setattr(export, "to_trajectory", lambda recorded, **named: recorded)
    monkeypatch.setattr(export, "control_agreement", lambda choosing, certifying, **named: (choosing, certifying))

    def write(kind: Any, calibration: Any) -> Any:
        told.append(kind)
        ranges.add(tuple(row["place"] for row in calibration))
        manifest = SimpleNamespace(task="classification")
        return SimpleNamespace(kind=kind, manifest=manifest, record=lambda rows, **named: record_of(kind))

    given = torch.arange(400), torch.arange(400, 1000)
    given_rows: Any = [{"place": place} for place in range(1000)]
    model, sides, kind = export._written(made, write, given_rows, given, True, 0.01, 0.95)  # type: ignore[arg-type]
    assert (model.kind, kind, told) == (expected, expected, written)  # type: ignore[attr-defined]
    assert ranges == {tuple(place * 400 // 256 for place in range(256))}, "of all choosing texts, and not of the first"
    assert [len(side) for side in sides] == [400, 600]  # type: ignore[attr-defined, call-overload]


@pytest.mark.parametrize("int8", [False, True])
def test_what_fails_replaces_no_export(
    int8: bool, fitted: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trap: the graphs were there before the promise was made, with the folder's own, and an earlier export was gone.
    out, options = tmp_path / "out", ["--int8"] if int8 else []
    shutil.copytree(exported, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    few, enough = (table(tmp_path / f"{n}.csv", [[text] for text in sentences(n, seed=3)]) for n in (1, 60))
    with monkeypatch.context() as patched:
        patched.setattr(export, "onnx", lambda *given, **named: pytest.fail("graphs are written before it is known"))
        assert "to certify" in refused("export", fitted, *options, "--texts", few, "--out", out)

    def fails(*given: Any, **named: Any) -> Any:
        raise PonderError("nothing is promised.")

    monkeypatch.setattr(export, "control_agreement", fails)
    for target in (out, tmp_path / "new"):
        assert "nothing is promised" in refused("export", fitted, *options, "--texts", enough, "--out", target)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_bad_folders(fitted: Path, exported: Path, tmp_path: Path) -> None:
    assert "exits.json" in refused("export", tmp_path, "--out", tmp_path / "new")
    assert "expected another folder" in refused("export", fitted, "--out", fitted)
    path = table(tmp_path / "in.csv", [["w1"]])
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in exported.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "exits.json").write_bytes((fitted / "exits.json").read_bytes())
    told = refused("predict", broken, "--texts", path, "--out", tmp_path / "o")
    assert "expected the folder of one model" in told
    assert "with an export (export.json) and a saved model (exits.json)" in told
    (broken / "exits.json").unlink()
    (broken / "head_1.onnx").write_bytes(b"cut")
    assert "head_1.onnx: missing, or not of the" in refused("predict", broken, "--texts", path, "--out", tmp_path / "o")
    (broken / "export.json").write_text('{"format": "other"}')
    assert "not written by ponder.export.onnx" in refused("predict", broken, "--texts", path, "--out", tmp_path / "o")
