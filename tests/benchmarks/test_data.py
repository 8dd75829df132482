"""Data of GLUE and of the other texts, their metrics and tokens, and where backbones come from."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from benchmarks import backbones, metrics, tasks
from benchmarks.examples import Collator, hold_out, load_tokenizer, tokenize
from benchmarks.files import DataError
from benchmarks.rerank.data import load as load_queries
from benchmarks.rerank.race import pools_of
from ponder.errors import ArgumentError, CheckpointError, NonFiniteError
from tests.benchmarks.glue_files import SHARED, write

MNLI = "index\tpromptID\tpairID\tgenre\ta\tb\tc\td\tsentence1\tsentence2\tlabel1\tgold_label"
# task: lines of a labelled file, and what the first row of it is read as.
FILES: dict[str, tuple[list[str], tuple[Any, ...]]] = {
    "CoLA": (['src\t1\t\t"A quote" is text.'], ('"A quote" is text.', 1)),
    "SST-2": (["sentence\tlabel", "one \u2028two \t0"], ("one \u2028two", 0)),
    "MRPC": (["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t1\t2\tOne.\tTwo."], ("One.", "Two.", 1)),
    "STS-B": (["i\tsentence1\tsentence2\tscore", "0\tOne.\tTwo.\t3.800"], ("One.", "Two.", np.float32(3.8))),
    "QQP": (
        ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "9\t1\t2\tOne?\tTwo?\t1", "9\t1"], ("One?", "Two?", 1)
    ),
    "MNLI": ([MNLI, "0\t7\t7c\tf\ta\tb\tc\td\tOne.\tTwo.\tneutral\tcontradiction"], ("One.", "Two.", 2)),
    "QNLI": (["index\tquestion\tsentence\tlabel", "0\tOne?\tTwo.\tentailment"], ("One?", "Two.", 0)),
    "RTE": (["index\tsentence1\tsentence2\tlabel", "0\tOne.\tTwo.\tnot_entailment"], ("One.", "Two.", 1)),
    "WNLI": (["index\tsentence1\tsentence2\tlabel", "0\tOne.\tTwo.\t1"], ("One.", "Two.", 1)),
}  # fmt: skip


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", FILES)
def test_every_file_of_glue_is_read_as_it_is_meant(name: str, end: str, tmp_path: Path) -> None:
    lines, expected = FILES[name]
    task = tasks.get(name)
    (split, *_) = task.dev_splits
    write(tmp_path, name, split, lines, end)
    (row,) = task.load(tmp_path, [split])[split]
    texts = [row[column] for column in ("sentence1", "sentence2") if column in row]
    assert (*texts, row["label"]) == expected
    assert row["idx"] == 0


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (
            ["index\tsentence1\tlabel", "0\tOne.\tentailment"],
            "line 1: expected a header with sentence1, sentence2",
        ),
        (
            ["index\tsentence1\tsentence2\tlabel", "0\tOne.\tentailment"],
            "line 2: expected 4 columns; got 3",
        ),
        (
            ["index\tsentence1\tsentence2\tlabel", "0\tOne.\tTwo.\tyes"],
            "line 2: expected a label of entailment",
        ),
        (["index\tsentence1\tsentence2\tlabel"], "expected examples; got none"),
    ],
)
def test_a_file_of_another_form_is_named_with_its_line(
    lines: list[str], fault: str, tmp_path: Path
) -> None:
    write(tmp_path, "RTE", "dev", lines)
    with pytest.raises(DataError, match=fault):
        tasks.get("RTE").load(tmp_path, ["dev"])


def test_a_missing_file_and_an_unreachable_hub_say_what_to_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="GLUE_DIR"):
        tasks.get("RTE").load(tmp_path, ["dev"])
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *_: (_ for _ in ()).throw(ConnectionError("offline"))
    )
    with pytest.raises(DataError, match=r"offline.*GLUE_DIR"):
        tasks.get("RTE").load(None)
    with pytest.raises(ArgumentError, match="RTE"):
        tasks.get("no such task")


@pytest.mark.skipif(not (SHARED / "glue").is_dir(), reason="needs GLUE's data in ../shared/glue")
@pytest.mark.parametrize(
    ("name", "rows"), [("CoLA", 1043), ("MRPC", 408), ("RTE", 277), ("STS-B", 1500)]
)
def test_glues_own_files(name: str, rows: int) -> None:
    assert len(tasks.get(name).load(SHARED / "glue", ["dev"])["dev"]) == rows


@pytest.mark.skipif(
    not (SHARED / "text").is_dir(), reason="needs Banking77 and CLINC150 in ../shared/text"
)
def test_the_other_texts_own_files() -> None:
    assert len(tasks.get("Banking77").load(SHARED / "text")["test"]) == 3080
    assert len(tasks.get("CLINC150").load(SHARED / "text", ["test"])["test"]) == 5500


def test_intents_are_numbered_by_name_and_what_is_out_of_scope_comes_last(text_dir: Path) -> None:
    banking, clinc = (tasks.get(name).load(text_dir) for name in ("banking77", "clinc150"))
    assert banking["train"]["label"][:3] == [0, 1, 2]
    assert banking["test"]["sentence1"][1] == "the 1, one"
    assert clinc["test"]["label"][-1] == tasks.get("CLINC150").outside == 150
    assert sorted(clinc) == ["dev", "test", "train"]
    (text_dir / "other" / "banking77").mkdir(parents=True, exist_ok=True)
    (text_dir / "other" / "banking77" / "train.csv").write_text("text,category\na,b\n")
    with pytest.raises(DataError, match="expected 77 classes"):
        tasks.get("banking77").load(text_dir / "other")


def test_metrics_are_glues_and_undefined_correlations_are_zero() -> None:
    labels = np.array([0, 1, 1, 0, 1])
    predictions = np.array([0, 1, 0, 0, 1])
    assert metrics.score(tasks.get("MRPC"), predictions, labels) == pytest.approx(
        {"accuracy": 0.8, "f1": 0.8, "score": 0.8}
    )
    assert metrics.score(tasks.get("CoLA"), predictions, labels)["matthews"] == pytest.approx(2 / 3)
    numbers = np.array([0.0, 1.0, 2.5, 4.0])
    assert metrics.score(tasks.get("STS-B"), numbers * 2 + 1, numbers)["score"] == pytest.approx(
        1.0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, of, truth in (("CoLA", labels * 0, labels), ("STS-B", numbers * 0, numbers)):
            assert metrics.score(tasks.get(name), of, truth)["score"] == 0.0
    outside = metrics.score(tasks.get("CLINC150"), np.array([3, 150, 4]), np.array([3, 150, 150]))
    assert outside == {"accuracy": 1.0, "score": 1.0, "out_of_scope_recall": 0.5}
    with pytest.raises(NonFiniteError):
        metrics.answers(tasks.get("RTE"), np.array([[0.0, np.nan]]))


def test_what_is_held_out_keeps_the_classes_and_follows_from_the_seed() -> None:
    data = Dataset.from_dict({"label": [0] * 30 + [1] * 9 + [2], "idx": list(range(40))})
    rest, held = hold_out(data, 0.25, seed=0)
    assert sorted([*rest["idx"], *held["idx"]]) == list(range(40))
    assert [list(held["label"]).count(label) for label in range(3)] == [
        8,
        2,
        0,
    ]  # the lone row of a class trains
    assert hold_out(data, 0.25, seed=0)[1]["idx"] == held["idx"]
    assert hold_out(data, 0.25, seed=1)[1]["idx"] != held["idx"]


def test_tokens_are_cut_and_padded_to_the_longest_of_the_batch(
    backbone: str, glue_dir: Path
) -> None:
    tokenizer = load_tokenizer(backbone)
    rows = tokenize(tasks.get("RTE").load(glue_dir, ["dev"])["dev"], tokenizer, 10)
    assert max(rows["length"]) == 10
    batch = Collator(tokenizer)([rows[0], rows[1]])
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["row_ids"].tolist() == [0, 1]
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_tokenizer(str(glue_dir))


def test_a_backbone_is_embedded_a_folder_or_a_hub_name(backbone: str) -> None:
    assert backbones.names() == ("minilm", "mpnet", "e5", "plbert", "shared")
    assert str(backbones.resolve(backbone)) == backbone
    assert backbones.resolve("bert-base-uncased") == "bert-base-uncased"
    with pytest.raises(ArgumentError, match="existing folder"):
        backbones.resolve("./no/such/folder")


def test_an_archive_in_parts_is_read_as_one_and_extracted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for name in (
            "model/config.json",
            "model/model.safetensors",
            "model/pytorch_model.bin",
            "model/code.py",
        ):
            archive.writestr(name, name * 1000)
    whole = (tmp_path / "whole.zip").read_bytes()
    parts = [tmp_path / f"part.zip.00{number}" for number in range(3)]
    for number, part in enumerate(parts):
        part.write_bytes(whole[number * len(whole) // 3 : (number + 1) * len(whole) // 3])
    monkeypatch.setenv("PONDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(backbones, "_parts", lambda: parts)
    folder = Path(backbones.resolve("mpnet"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]  # no pickle, no code
    assert (folder / "config.json").read_text() == "model/config.json" * 1000
    monkeypatch.setattr(backbones, "_parts", lambda: pytest.fail("extracted twice"))
    assert backbones.resolve("mpnet") == folder
    parts[1].write_bytes(b"")
    monkeypatch.setattr(backbones, "_parts", lambda: parts)
    monkeypatch.setenv("PONDER_CACHE", str(tmp_path / "other"))
    with pytest.raises(DataError, match="pip install"):
        backbones.resolve("mpnet")
    assert not list((tmp_path / "other").iterdir())


def test_sentences_of_pairs_are_candidates_by_bm25(tmp_path: Path) -> None:
    pairs = [
        ("cats sleep a lot", "a cat sleeps", "entailment"),
        ("dogs bark at night", "dogs bark", "not_entailment"),
    ]
    pairs += [(f"dogs bark in town {n}", f"dogs bark {n}", "entailment") for n in range(60)]
    lines = [
        "index\tsentence1\tsentence2\tlabel",
        *(f"{n}\t" + "\t".join(pair) for n, pair in enumerate(pairs)),
    ]
    for split in ("train", "dev"):
        write(tmp_path, "RTE", split, lines)
    queries = load_queries("RTE", tmp_path, 0, train=True)
    pools = pools_of(queries)
    assert len(queries) == 61
    assert {len(pool.documents) for pool in pools} == {50}
    for pool in pools:
        assert list(pool.scores) == sorted(pool.scores, reverse=True)
        if any(pool.labels):
            assert (pool.documents[list(pool.labels).index(1.0)], pool.query, "entailment") in pairs
