"""Submissions: predictions of kept models, their format, and the checker on good and broken zips."""

import re
import shutil
import zipfile

import pytest
import torch
from glue_files import lines_of, write
from test_glue_run import config, invoke

from benchmarks.glue.model import load_kept
from benchmarks.glue.run import run
from benchmarks.glue.submission import FILES, predict, submit, write_submission
from ponder import policies
from ponder.errors import ArgumentError, CheckpointError, DataError

NAMES = ["CoLA", "SST-2", "MRPC", "STS-B", "MNLI-m", "MNLI-mm", "QNLI", "QQP", "RTE", "WNLI", "AX"]
ROWS = 3  # of each test file of `glue_dir`
WORDS = {
    **dict.fromkeys(("MNLI-m", "MNLI-mm", "AX"), ("entailment", "neutral", "contradiction")),
    **dict.fromkeys(("QNLI", "RTE"), ("entailment", "not_entailment")),
    **dict.fromkeys(("CoLA", "SST-2", "MRPC", "QQP", "WNLI"), ("0", "1")),
}


@pytest.fixture(scope="module")
def kept(backbone, glue_dir, tmp_path_factory):
    """Folders of models of RTE, STS-B and MNLI."""
    folder, made = tmp_path_factory.mktemp("kept"), {}
    data = folder / "glue"
    shutil.copytree(glue_dir, data)
    labels = ("entailment", "neutral", "contradiction")
    for split, rows in (("train", 30), ("dev_matched", 6), ("dev_mismatched", 6)):
        head, row = lines_of("MNLI", "dev_matched")[0], lines_of("MNLI", "dev_matched")[1]
        cells = row.rsplit("\t", 1)[0]
        write(
            data, "MNLI", split, [head, *(f"{cells}\t{labels[n % 3]}".replace("0\t", f"{n}\t", 1) for n in range(rows))]
        )
    for task, recipe in (("RTE", "palbert"), ("STS-B", "pabee"), ("MNLI", "vanilla")):
        settings = config(backbone, task=task, recipe=recipe)
        run(settings, data, folder / "out", folder / "work", models=folder / "models", progress=False)
        made[task] = folder / "models" / settings.key
    return made


@pytest.fixture
def good(tmp_path):
    """A submission of three rows a file, and what it was made of."""
    given = {f"{name}.tsv": [float(len(words) - 1), 0.0, 1.0] for name, words in WORDS.items()}
    given["STS-B.tsv"] = [-1.0, 3.14159, 7.0]
    return write_submission(tmp_path, given)


def faults(name, text, rows):
    """What GLUE's server would not take of a file."""
    legal = r"[0-4]\.\d{3}|5\.000" if name == "STS-B.tsv" else "|".join(WORDS[name.removesuffix(".tsv")])
    header, *lines = text.removesuffix("\n").split("\n")
    bad = [] if header == "index\tprediction" and len(lines) == rows else [header]
    return bad + [line for n, line in enumerate(lines) if not re.fullmatch(rf"{n}\t({legal})", line)]


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_the_format_is_that_of_glue(good, glue_dir):
    files = contents(good)
    assert sorted(files) == sorted(f"{name}.tsv" for name in NAMES)
    assert files["STS-B.tsv"] == "index\tprediction\n0\t0.000\n1\t3.142\n2\t5.000\n"
    assert files["RTE.tsv"] == "index\tprediction\n0\tnot_entailment\n1\tentailment\n2\tnot_entailment\n"
    assert files["AX.tsv"] == "index\tprediction\n0\tcontradiction\n1\tentailment\n2\tneutral\n"
    assert files["WNLI.tsv"] == files["QQP.tsv"] == "index\tprediction\n0\t1\n1\t0\n2\t1\n"
    for name, text in files.items():
        assert (good.parent / name).read_text() == text
        assert faults(name, text, ROWS) == []


def test_equal_predictions_give_equal_bytes(tmp_path):
    given = {file.name: [1.0, 0.0] for file in FILES}
    assert write_submission(tmp_path / "a", given).read_bytes() == write_submission(tmp_path / "b", given).read_bytes()


def test_predictions_are_those_of_each_row_alone_in_the_order_of_the_file(kept, glue_dir):
    model = load_kept(kept["STS-B"])  # scores differ from row to row, where classes may not
    assert model.model.policy == policies.Patience(2, 0.1)
    file = next(file for file in FILES if file.name == "STS-B.tsv")
    data = file.load(glue_dir)
    given, steps = predict(model, data, batch_size=2)
    assert len(set(given)) == ROWS
    for row in range(ROWS):
        one = model.tokenizer(data[row]["sentence1"], data[row]["sentence2"], return_tensors="pt")
        out = model.model(**one)
        assert given[row] == pytest.approx(out.logits.item(), abs=1e-5)
        assert steps[row] == out.exit_step.item()


def test_a_kept_model_goes_to_the_accelerator_where_there_is_one(kept, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    assert load_kept(kept["RTE"]).model.device.type == "meta"


def test_the_predict_command_answers_the_tasks_that_have_a_model(kept, glue_dir, tmp_path):
    models = [part for folder in kept.values() for part in ("--model", folder)]
    done = invoke("predict", *models, "--glue-dir", glue_dir, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "RTE.tsv: 3 predictions by rte-" in done.output
    assert "GLUE takes all files or none, and there is no model for CoLA.tsv" in done.output
    files = contents(tmp_path / "submission.zip")
    assert sorted(files) == ["AX.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "RTE.tsv", "STS-B.tsv"]
    for name, text in files.items():
        assert faults(name, text, ROWS) == []


def test_models_that_cannot_answer_are_refused(kept, glue_dir, tmp_path):
    with pytest.raises(ArgumentError, match="two of RTE"):
        submit([kept["RTE"], kept["RTE"]], glue_dir, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"expected the folder of a kept model, .* it has no glue\.json"):
        submit([tmp_path], glue_dir, tmp_path / "out")
    with pytest.raises(ArgumentError, match="at least one kept model"):
        submit([], glue_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_and_folders_are_looked_at_before_anything_is_answered(kept, glue_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.glue.submission.predict", lambda *given: pytest.fail("answered, and then refused"))
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match="can be written"):
        submit([kept["RTE"]], glue_dir, tmp_path / "file" / "below")
    shutil.copytree(glue_dir, tmp_path / "glue")
    shutil.rmtree(tmp_path / "glue" / "diagnostic")  # the last file that MNLI answers
    with pytest.raises(DataError, match="expected the test split of diagnostic"):
        submit([kept["RTE"], kept["MNLI"]], tmp_path / "glue", tmp_path / "out")
    assert not (tmp_path / "out").exists()
