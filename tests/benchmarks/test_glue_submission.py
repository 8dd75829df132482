"""Submissions: predictions of kept models, their format, and the checker on good and broken zips."""

import json
import shutil
import zipfile

import pytest
import torch
from glue_files import lines_of, write
from test_glue_run import config, invoke

from benchmarks.checksum import with_checksum
from benchmarks.glue.config import RunConfig
from benchmarks.glue.latency import time_policies
from benchmarks.glue.model_store import best_kept, load_kept
from benchmarks.glue.report import report
from benchmarks.glue.results import Result, read_all, recipe_of
from benchmarks.glue.run import run
from benchmarks.glue.submission import FILES, check_submission, predict, submit, write_submission
from benchmarks.glue.thresholds import SPEED_UPS, read_curve
from ponder import policies
from ponder._utils.files import write_json
from ponder.errors import ArgumentError, CheckpointError, DataError
from ponder.pages import Figure

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


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def repacked(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_the_format_is_that_of_glue(good, glue_dir):
    files = contents(good)
    assert sorted(files) == sorted(f"{name}.tsv" for name in NAMES)
    assert files["STS-B.tsv"] == "index\tprediction\n0\t0.000\n1\t3.142\n2\t5.000\n"
    assert files["RTE.tsv"] == "index\tprediction\n0\tnot_entailment\n1\tentailment\n2\tnot_entailment\n"
    assert files["AX.tsv"] == "index\tprediction\n0\tcontradiction\n1\tentailment\n2\tneutral\n"
    assert files["WNLI.tsv"] == files["QQP.tsv"] == "index\tprediction\n0\t1\n1\t0\n2\t1\n"
    for name, text in files.items():
        assert (good.parent / name).read_text() == text
    assert check_submission(good, glue_dir) == []


def test_without_data_the_numbers_of_rows_are_the_official_ones(good):
    faults = check_submission(good)
    assert len(faults) == 11
    assert "RTE.tsv: expected 3000 predictions; got 3" in faults


@pytest.mark.parametrize(
    ("name", "old", "new", "fault"),
    [
        ("RTE.tsv", "index\tprediction", "id\tlabel", "RTE.tsv, line 1: expected the header"),
        ("RTE.tsv", "1\tentailment", "1\t0", "RTE.tsv, line 3: expected one of entailment, not_entailment; got '0'"),
        ("CoLA.tsv", "1\t0\n", "1\tacceptable\n", "CoLA.tsv, line 3: expected one of 0, 1"),
        ("QNLI.tsv", "2\tnot_entailment\n", "", "QNLI.tsv: expected 3 predictions; got 2"),
        ("QQP.tsv", "1\t0\n", "2\t0\n", "QQP.tsv, line 3: expected the index 1"),
        ("SST-2.tsv", "0\t1", "0,1", "SST-2.tsv, line 2: expected the index 0 and a tab"),
        ("STS-B.tsv", "3.142", "3.14159", "three decimals; got '3.14159'"),
        ("STS-B.tsv", "5.000", "5.001", "three decimals; got '5.001'"),
        ("STS-B.tsv", "0.000", "nan", "three decimals; got 'nan'"),
        ("MRPC.tsv", "prediction\n", "prediction\r\n", "MRPC.tsv, line 1"),
        ("WNLI.tsv", "2\t1\n", "2\t1\n\n", "WNLI.tsv: expected 3 predictions; got 4"),
        ("AX.tsv", "contradiction", "contradictión", "AX.tsv: expected plain text"),
    ],
)
def test_a_broken_file_is_named(good, glue_dir, name, old, new, fault):
    files = contents(good)
    assert old in files[name]
    found = check_submission(repacked(good, {**files, name: files[name].replace(old, new)}), glue_dir)
    assert fault in found[0]


def test_missing_and_foreign_files_are_named(good, glue_dir):
    files = contents(good)
    del files["AX.tsv"]
    found = check_submission(repacked(good, {**files, "glue/RTE.tsv": files["RTE.tsv"]}), glue_dir)
    assert found == ["AX.tsv: missing", "glue/RTE.tsv: no file of a submission"]


def test_no_zip_is_an_error(tmp_path):
    (tmp_path / "x.zip").write_text("no zip")
    for path in (tmp_path / "x.zip", tmp_path / "none.zip"):
        with pytest.raises(DataError, match="expected a zip"):
            check_submission(path)


def test_the_check_command(good, glue_dir):
    fine = invoke("check-submission", good, "--glue-dir", glue_dir)
    assert (fine.exit_code, "nothing is wrong" in fine.output) == (0, True)
    nowhere = invoke("check-submission", good, "--glue-dir", glue_dir / "none")
    assert "--glue-dir: expected a folder that is there" in str(nowhere.exception)
    bad = invoke("check-submission", good)
    assert (bad.exit_code, bad.output.count("expected")) == (1, 11)


def test_equal_predictions_give_equal_bytes(tmp_path):
    given = {file.name: [1.0, 0.0] for file in FILES}
    assert write_submission(tmp_path / "a", given).read_bytes() == write_submission(tmp_path / "b", given).read_bytes()
    with pytest.raises(DataError, match=r"RTE\.tsv"):
        write_submission(tmp_path, {name: values for name, values in given.items() if name != "RTE.tsv"})


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


def test_predict_command_writes_what_the_check_accepts(kept, glue_dir, tmp_path):
    models = [part for task in ("RTE", "MNLI") for part in ("--model", kept[task])]
    done = invoke(
        *("predict", *models, "--run", kept["STS-B"].name, "--models", kept["STS-B"].parent),
        *("--glue-dir", glue_dir, "--out", tmp_path, "--fill-missing"),
    )
    assert done.exit_code == 0, done.output
    assert "RTE.tsv: 3 predictions by rte-" in done.output
    assert "CoLA.tsv: 3 predictions by constant" in done.output
    assert check_submission(tmp_path / "submission.zip", glue_dir) == []
    files = contents(tmp_path / "submission.zip")
    for name, words in WORDS.items():
        assert {line.split("\t")[1] for line in files[f"{name}.tsv"].splitlines()[1:]} <= set(words)
    sources = json.loads((tmp_path / "submission.json").read_text())
    assert sources["AX.tsv"]["source"] == sources["MNLI-m.tsv"]["source"] == kept["MNLI"].name
    assert sources["WNLI.tsv"] == {"source": sources["WNLI.tsv"]["source"], "mean_exit_step": None}


def test_a_missing_task_is_refused_without_the_option(kept, glue_dir, tmp_path):
    with pytest.raises(ArgumentError, match=r"none for CoLA, MNLI, MRPC, .*--fill-missing"):
        submit([kept["RTE"]], glue_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArgumentError, match="two of RTE"):
        submit([kept["RTE"], kept["RTE"]], glue_dir, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"expected the folder of a kept model; it has no glue\.json"):
        submit([tmp_path], glue_dir, tmp_path / "out")
    with pytest.raises(ArgumentError, match="at least one kept model"):
        submit([], glue_dir, tmp_path / "out", fill=True)
    assert not (tmp_path / "out").exists()


def test_of_a_sweep_the_best_model_of_a_recipe_answers_each_task(backbone, glue_dir, tmp_path):
    suite = {"description": "", "tasks": ["RTE", "STS-B"], "recipes": ["pabee", "palbert"], "seeds": 2, "grid": {}}
    write_json(tmp_path / "own.json", {**suite, "fixed": {"epochs": 1, "batch_size": 16, "lr": 1e-3}})
    done = invoke(
        *("sweep", "--suite", tmp_path / "own.json", "--backbone", backbone, "--glue-dir", glue_dir),
        *("--executor", "inline", "--out", tmp_path / "out", "--work", tmp_path / "work"),
        *("--keep-model", tmp_path / "models"),
    )
    assert done.exit_code == 0, done.output
    results = read_all(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(r.path.stem for r in results)

    places = ("--models", tmp_path / "models", "--results", tmp_path / "out", "--out", tmp_path / "zip")
    asked = ("predict", *places, "--glue-dir", glue_dir, "--fill-missing", "--recipe")
    done = invoke(*asked, "palbert")
    assert done.exit_code == 0, done.output
    sources = json.loads((tmp_path / "zip" / "submission.json").read_text())
    for task in ("RTE", "STS-B"):
        of_task = [result for result in results if (result["task"], result["recipe"]) == (task, "palbert")]
        assert len(of_task) == 2
        best = max(result["splits"]["held_out"]["exits"]["score"] for result in of_task)
        (chosen,) = (result for result in of_task if result.path.stem == sources[f"{task}.tsv"]["source"])
        assert chosen["splits"]["held_out"]["exits"]["score"] == best
    folder, palbert = (
        tmp_path / "models",
        [run for run in results if (run["task"], run["recipe"]) == ("RTE", "palbert")],
    )
    of_others = ({"recipe_options": {"q": 0.3}}, {"policy": {"name": "last-step"}}, {"knob": "budget"})
    for fields in ({"selection": "dev"}, *of_others):  # none is the best of this recipe as it is
        config = RunConfig.from_dict({**palbert[0]["config"], **fields})
        splits = {**palbert[0]["splits"], "dev": {**palbert[0]["splits"]["dev"], "exits": {"score": 1.0}}}
        splits["held_out"] = splits["dev"]
        better = {**palbert[0].data, "config": config.to_dict(), "splits": splits}
        better["recipe_fields"] = recipe_of(config, "classification", better["num_steps"]).to_dict()
        Result(better).save(tmp_path / "out" / f"{config.key}.json")
        shutil.copytree(folder / palbert[0].path.stem, folder / config.key)
        chosen = {path.name for path in best_kept(folder, tmp_path / "out", "palbert")}
        assert sources["RTE.tsv"]["source"] in chosen
        assert config.key not in chosen
    (changed,) = best_kept(folder, tmp_path / "out", "palbert:q=0.3")
    assert RunConfig.from_dict({**palbert[0]["config"], **of_others[0]}).key == changed.name
    assert isinstance((done := invoke(*asked, "deebert")).exception, ArgumentError)
    assert "'deebert', which has none there" in str(done.exception)


def test_kept_models_are_timed_with_every_policy_and_the_report_shows_it(kept, glue_dir, tmp_path):
    results = kept["RTE"].parents[1] / "out"
    done = invoke("clock", "--model", kept["RTE"], "--results", results, "--glue-dir", glue_dir, "--pairs", 1)
    assert done.exit_code == 0, done.output
    made = json.loads((results / "clock" / f"{kept['RTE'].name}.json").read_text())
    run = Result.of_run(results / f"{kept['RTE'].name}.json")
    assert {row["policy"] for row in made["rows"]} <= {"quantile", "patience", "entropy", "confidence"}
    assert made["rows"]
    for row in made["rows"]:
        (point,) = (p for p in read_curve(run, row["policy"]).points if p.threshold == row["knob"])
        assert min(abs(point.mean_exit_step * speed_up / 4 - 1) for speed_up in SPEED_UPS) <= 0.15
        assert row["wall_clock_range"] == [row["wall_clock"]] * 2
    page = report([run], draw=False, only=["clock"]).markdown()
    assert page.count("| RTE | palbert | `") == len(made["rows"])
    (figure,) = (block for block in report([run], only=["clock"]).blocks if isinstance(block, Figure))
    assert figure.name == "tiny-policies-by-wall-clock"
    assert "RTE, palbert" in figure.svg
    assert "Steps and seconds" not in report([Result(run.data)], draw=False).markdown()
    foreign, broken = {**made, "key": "another"}, with_checksum({**made, "rows": [{**made["rows"][0], "knob": 99.9}]})
    edited = {**made, "rows": [{**made["rows"][0], "wall_clock": 99.0}]}
    for changed, message in (
        (foreign, "of another"),
        (broken, "thresholds that the run has"),
        (with_checksum({**made, "rows": 1}), "int"),
        (edited, "it was edited since"),
    ):
        (results / "clock" / f"{kept['RTE'].name}.json").write_text(json.dumps(changed))
        with pytest.raises(DataError, match=message):
            report([run], draw=False, only=["clock"])
    shutil.rmtree(results / "clock")
    for model, folder, message in (
        (kept["RTE"], tmp_path, "--results: expected the folder with the result of the model"),
        (kept["MNLI"], results, "--model: expected a model that a policy takes near"),  # vanilla
    ):
        with pytest.raises(ArgumentError, match=message):
            time_policies(load_kept(model), folder, glue_dir)


def test_constants_are_the_most_frequent_label_and_official_in_number_without_data(kept, glue_dir, tmp_path):
    data = tmp_path / "glue"
    shutil.copytree(glue_dir, data)
    shutil.rmtree(data / "WNLI")
    write(data, "CoLA", "train", ["s\t1\t\tOne.", "s\t1\t\tTwo.", "s\t0\t\tThree."])
    made = submit([kept["RTE"]], data, tmp_path / "out", fill=True, say=lambda text: None)
    assert made.files["CoLA.tsv"].predictions == [1.0] * ROWS
    assert len(made.files["WNLI.tsv"].predictions) == 146
    assert "no data here" in made.files["WNLI.tsv"].source
    write(data, "CoLA", "train", ["s\tmaybe\t\tOne."])  # there, and wrong
    with pytest.raises(DataError, match=r"train\.tsv"):
        submit([kept["RTE"]], data, tmp_path / "again", fill=True, say=lambda text: None)
