"""The demo and the measurements of fine-tuned classifiers, on a tiny backbone and a few texts."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from glue_files import write
from transformers import AutoTokenizer, BertForSequenceClassification

from benchmarks import graded
from benchmarks.finetuned.demo import SHARES, demo
from benchmarks.finetuned.run import run
from ponder.errors import ArgumentError, PonderError
from ponder.integrations.transformers import FinetunedClassifier, PonderForSequenceClassification
from tests.quick_exports import make_exports_quick

INT8 = all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))


def test_the_demo_keeps_a_promise_and_says_what_it_saved(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = demo(tmp_path, backbone=backbone, scale=0.05)
    told = capsys.readouterr().out
    assert max(len(line) for line in told.splitlines() if str(tmp_path) not in line) <= 80
    assert card["statement"] in " ".join(told.split())
    assert "fresh reviews, which nothing was chosen on" in told
    assert (tmp_path / "report.html").read_bytes() == (tmp_path / "exits" / "report.html").read_bytes()
    assert FinetunedClassifier.from_pretrained(tmp_path / "exits").num_steps == 4
    assert card["fresh"]["seconds_plain"] > 0
    assert sorted(card["fresh"]["mean_exit_step_by_difficulty"]) == [0, 1, 2, 3]


def test_a_folder_that_exits_could_not_be_written_to_is_refused_before_anything_is_fine_tuned(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.finetuned.demo.fine_tune", lambda *given, **named: pytest.fail("fine-tuned"))
    (tmp_path / "exits").mkdir()
    (tmp_path / "exits" / "mine.txt").touch()
    with pytest.raises(ArgumentError, match=r"out: expected a new or empty folder, or one with exits\.json"):
        demo(tmp_path, backbone=backbone, scale=0.05)


def test_traffic_is_mostly_easy_and_no_text_is_in_two_splits() -> None:
    made = {split: graded.traffic("negation", split, 200, SHARES) for split in graded.SPLITS}
    levels = list(made["train"]["difficulty"])
    assert [levels.count(level) for level in range(4)] == [120, 50, 20, 10]
    assert list(made["train"]["label"]).count(0) == 100
    texts = [set(part["sentence1"]) for part in made.values()]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    with pytest.raises(ArgumentError, match="shares"):
        graded.traffic("negation", "dev", 10, (0.5, 0.5))


SETTINGS: dict[str, Any] = {
    "train": 60, "texts": 160, "epochs": 1, "lr": 1e-3, "bf16": True, "disagreement": 0.2, "seed": 0,
}  # fmt: skip


def sentences(folder: Path, test: slice) -> dict[str, Path | None]:
    """The folders of SST-2 with 260 sentences, some of which are reported."""
    rows = [f"it is {'not ' * (n % 3 == 0)}true that {' '.join(str(n))} \t{int(n % 3 > 0)}" for n in range(260)]
    for split, part in (("train", rows), ("dev", rows[test])):
        write(folder, "SST-2", split, ["sentence\tlabel", *part])
    return {"--glue-dir": folder, "--text-dir": None}


def test_a_task_is_measured_on_texts_that_chose_nothing(
    shallow: str, glue_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = sentences(tmp_path / "glue", slice(20))
    make_exports_quick()
    run("SST-2", shallow, SETTINGS, folders, tmp_path / "work", tmp_path / "out", deep=False, int8=INT8)
    (path,) = (tmp_path / "out").iterdir()
    result = json.loads(path.read_text())
    assert result["plain_fine_tuned_on"] == 60
    assert result["exits"]["rows"] == 160
    assert result["test"]["rows"] == 20
    assert 0 <= result["test"]["disagreement"] <= 1
    if INT8:
        assert result["int8"]["products"].startswith("in int8")
        assert result["int8"]["test"]["plain_accuracy"] == result["test"]["plain_accuracy"]
    other = {**SETTINGS, "texts": 150}
    with pytest.raises(ArgumentError, match=r"--out: expected a folder without a result of other settings"):
        run("SST-2", shallow, other, folders, tmp_path / "work", tmp_path / "out", deep=False, int8=False)
    alike = shutil.copytree(shallow, tmp_path / "elsewhere" / Path(shallow).name)
    with pytest.raises(ArgumentError, match=r"--out: .* or of another model"):
        run("SST-2", str(alike), SETTINGS, folders, tmp_path / "work", tmp_path / "out", deep=False, int8=False)
    assert json.loads(path.read_text()) == result
    assert len(list((tmp_path / "work").iterdir())) == 1

    def without_onnxruntime(*given: Any, **named: Any) -> None:
        raise PonderError("no onnxruntime")

    monkeypatch.setattr("benchmarks.finetuned.run.export.run", without_onnxruntime)
    with pytest.raises(PonderError, match="no onnxruntime"):
        run("SST-2", str(alike), SETTINGS, folders, tmp_path / "alike", tmp_path / "alike-out", deep=False, int8=True)
    assert json.loads((tmp_path / "alike-out" / path.name).read_text())["test"], "what int8 has no part in stands"
    (mine,), (other,) = (tmp_path / "work").iterdir(), (tmp_path / "alike").iterdir()
    assert mine.name != other.name, "a model of another backbone is another"
    changed = [f"it is {'not ' * (n % 2)}true that {' '.join(str(n))} \t{n % 2}" for n in range(260)]
    write(tmp_path / "glue", "SST-2", "train", ["sentence\tlabel", *changed])
    run("SST-2", shallow, SETTINGS, folders, tmp_path / "work", tmp_path / "other", deep=False, int8=False)
    assert len(list((tmp_path / "work").iterdir())) == 2, "a model of other texts is another"
    for name in ("STS-B", "RTE"):
        with pytest.raises(ArgumentError, match="task"):
            run(name, shallow, SETTINGS, {"--glue-dir": glue_dir}, tmp_path, tmp_path, deep=False, int8=False)


def test_a_kept_encoder_gets_a_head_and_exits_on_a_part_of_the_reported_texts(backbone: str, tmp_path: Path) -> None:
    kept = PonderForSequenceClassification.from_encoder(backbone, "vanilla", num_labels=2)
    kept.save_pretrained(tmp_path / "kept")
    AutoTokenizer.from_pretrained(backbone).save_pretrained(tmp_path / "kept")
    folders, work, out = sentences(tmp_path / "glue", slice(200)), tmp_path / "work", tmp_path / "out"
    run("SST-2", "tiny", SETTINGS, folders, work, out, deep=False, int8=False, kept=tmp_path / "kept")
    result = json.loads((out / "sst-2-tiny-kept-exits-s0.json").read_text())
    assert result["exits"]["rows"] == 160
    assert result["test"]["rows"] == 40
    assert result["kept"] == "kept"
    (folder,) = work.glob("sst-2-tiny-kept-s0-*")  # and what it was made by
    plain = BertForSequenceClassification.from_pretrained(folder / "plain")
    own, given = plain.bert.encoder.state_dict(), kept.encoder.encoder.state_dict()
    assert all(torch.equal(own[name], given[name]) for name in given)
    with pytest.raises(ArgumentError, match="--texts"):
        run("SST-2", "tiny", {**SETTINGS, "texts": 200}, folders, work, out, deep=False, int8=False, kept=tmp_path)
