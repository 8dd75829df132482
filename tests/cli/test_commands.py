"""The commands end to end, on a tiny fine-tuned BERT."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ponder.cli.output import progress
from ponder.deploy.folders import Opened, open_folder
from ponder.policies import Certified, LastStep
from tests.cli.conftest import NAMES, Folders
from tests.compare import assert_same_rows, clear_rows
from tests.integrations.encoders import some_texts

Run = Callable[..., Any]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def clear_texts(folders: Folders, texts: list[str]) -> Any:
    """Return the texts that rounding cannot move, `(texts,)`, by the steps that the folder with exits records."""
    from ponder.integrations.transformers import PonderForSequenceClassification

    model = PonderForSequenceClassification.from_pretrained(str(folders.exits))
    return clear_rows(model.record(texts), model.policy)


def assert_same_files(found: Path, expected: Path, rows: int) -> None:
    """The first answers of two runs are equal, and their probabilities but for the last of four decimals."""
    one = rows_of(found)
    other = rows_of(expected)[:rows]
    assert len(one) == len(other) == rows
    for row, wanted in zip(one, other, strict=True):
        probabilities = float(row.pop("probability")), float(wanted.pop("probability"))
        assert probabilities[0] == pytest.approx(probabilities[1], abs=1.01e-4)
        assert row == wanted


def fits(output: str) -> bool:
    return max(map(len, output.splitlines())) <= 80


def test_exits_writes_a_folder_with_its_promise_and_report(
    run: Run, folders: Folders, tmp_path: Path
) -> None:
    labelled = tmp_path / "labelled.csv"
    labelled.write_text(
        "".join(
            f"{line},{NAMES[n % 3] if n else 'label'}\n"
            for n, line in enumerate(folders.texts.read_text().split("\n")[:301])
        )
    )
    out = tmp_path / "new" / "exits"
    arguments = (
        "exits",
        folders.model,
        "--texts",
        labelled,
        "--out",
        out,
        "--disagreement",
        0.1,
        "--labels",
        "label",
    )
    result = run(*arguments, "--column", "text")
    assert fits(result.stdout)
    said = " ".join(result.stdout.split())
    assert "other answers than at full depth on at most 10% of inputs like these" in said
    assert "300 texts" in result.stdout
    assert "accuracy" in result.stdout
    card = json.loads((out / "ponder.json").read_text())
    assert (card["command"], card["columns"], card["met"], card["level"]) == (
        "exits",
        ["text"],
        True,
        0.1,
    )
    policy = open_folder(out).policy
    assert isinstance(policy, Certified)
    made = policy.certificate
    assert (made.risk, made.level, made.num_steps) == ("disagreement", 0.1, 4)
    again = json.loads(
        run(*arguments, "--column", "text", "--json").stdout
    )  # its own folder may be written again
    timed = {"speed_up_in_seconds", "seconds_of_fitting", "made"}
    assert {name: again[name] for name in again.keys() - timed} == {
        name: card[name] for name in card.keys() - timed
    }


def test_a_speed_up_is_reached_with_the_fewest_other_answers(folders: Folders) -> None:
    card = json.loads((folders.exits / "ponder.json").read_text())
    assert card["speed_up_asked"] == 1.4
    assert card["speed_up_in_steps"] >= 1.3  # on other texts than those that chose it
    page = (folders.exits / "report.html").read_text()
    assert "×1.4 in steps" in page
    assert page.count("<svg") == 1
    changed = round(card["disagreement"] * card["certified_on"])
    assert (
        f"{changed} of {card['certified_on']}" if changed else f"None of {card['certified_on']}"
    ) in page


def test_the_report_lists_texts_whose_answer_changed(
    run: Run, folders: Folders, tmp_path: Path
) -> None:
    from ponder.cli.outcome import Outcome
    from ponder.cli.report import changed_texts, write_page
    from ponder.integrations.transformers import PonderForSequenceClassification, fit_exits
    from ponder.policies import FixedStep

    model = PonderForSequenceClassification.from_pretrained(str(folders.exits))
    texts = [row["text"] for row in rows_of(folders.fresh)]
    report = fit_exits(model, texts, epochs=1, disagreement=0.3)
    certifying = [texts[place] for place in report.places]
    report.certifying.outputs[:, 0] = report.certifying.outputs[:, 0].roll(
        1, dims=-1
    )  # other answers at step 1
    answers = report.certifying.outputs.argmax(-1)
    other = (answers[:, 0] != answers[:, -1]).nonzero().flatten().tolist()
    path = tmp_path / "report.html"
    table = changed_texts(report.certifying, FixedStep(1), certifying, NAMES)
    made = {"date": "2026-12-02", "machine": "a machine", "ponder": "0"}
    outcome = Outcome({}, ["a & b"], [("name", "value")], tables=[table], title="<model>")
    write_page(path, outcome, made)
    page = path.read_text()
    assert "&lt;model&gt;" in page
    assert "How to use it" in page
    assert "a machine" in page
    assert f"{len(other)} of {len(certifying)}; the first 50" in page
    assert page.count('<td data-name="text">') == 50
    answer = NAMES[answers[other[0], -1]]
    assert f'{certifying[other[0]]}</td><td data-name="answer now">{answer}</td>' in page


@pytest.mark.parametrize("kind", ["exits", "export"])
def test_predict_keeps_every_column_and_answers_as_the_model(
    run: Run, folders: Folders, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "answers.csv"
    folder = getattr(folders, kind)
    result = run("predict", folder, "--texts", folders.fresh, "--out", out)
    assert "300 answers in" in result.stdout
    given = rows_of(folders.fresh)
    found = rows_of(out)
    assert list(found[0]) == ["id", "label", "text", "predicted_label", "probability", "exit_step"]
    assert [{name: row[name] for name in given[0]} for row in found] == given
    texts = [row["text"] for row in given]
    answers = open_folder(folder).answer(texts)
    clear = clear_texts(folders, texts)
    assert_same_rows([row["predicted_label"] for row in found], answers.labels, clear)
    assert_same_rows([int(row["exit_step"]) for row in found], answers.exit_step, clear)
    assert len({row["exit_step"] for row in found}) > 1


def test_predict_survives_a_stop_and_goes_on(
    run: Run, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ponder.cli.commands.predict._CHUNK", 100)
    whole = tmp_path / "whole.csv"
    part = tmp_path / "part.csv"
    arguments = ("predict", folders.exits, "--texts", folders.fresh, "--out")
    run(*arguments, whole)
    answer = Opened.answer
    calls = list[int]()

    def stop(self: Opened, texts: Any, policy: Any = None) -> Any:
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(self, texts, policy)

    monkeypatch.setattr(Opened, "answer", stop)
    assert "stopped" in run(*arguments, part, code=130).stderr
    assert_same_files(part, whole, 200)
    before = part.read_bytes()
    assert "--resume" in run(*arguments, part, code=2).stderr
    part.write_text(part.read_text() + '200,no,"a half')
    assert "200 answers more" in run(*arguments, part, "--resume").stdout
    assert calls[3:] == [100]
    assert_same_files(part, whole, 300)
    resumed = part.read_bytes()
    assert resumed.startswith(before)
    assert (
        "others"
        in run(
            "predict", folders.exits, "--texts", folders.texts, "--out", part, "--resume", code=2
        ).stderr
    )
    assert part.read_bytes() == resumed


def test_check_judges_a_promise_on_fresh_texts(run: Run, folders: Folders) -> None:
    fresh = ("--texts", folders.fresh, "--disagreement")
    result = run("check", folders.exits, *fresh, 0.2, "--labels", "label")
    assert fits(result.stdout)
    assert "The promise is kept" in result.stdout
    assert "with 95% confidence" in " ".join(result.stdout.split())
    assert "accuracy" in result.stdout
    assert "step 1" not in result.stdout  # choices that look at nothing are shown if asked for
    assert "step 1" in run("check", folders.exits, *fresh, 0.2, "--diagnose").stdout
    few = " ".join(run("check", folders.export, *fresh, 1e-4, code=3).stdout.split())
    assert "The promise is not refuted" in few
    assert "Too few to say more" in few


@pytest.mark.parametrize("kind", ["exits", "export"])
def test_the_file_that_made_a_promise_cannot_judge_it(
    run: Run, folders: Folders, tmp_path: Path, kind: str
) -> None:
    folder = getattr(folders, kind)
    refused = run("check", folder, "--texts", folders.texts, "--disagreement", 0.2, code=2)
    assert "--texts: expected fresh texts; got 400 of 400" in " ".join(refused.stderr.split())
    mixed = tmp_path / "mixed.csv"
    used = folders.texts.read_text().splitlines()[1:4]
    fresh = [row["text"] for row in rows_of(folders.fresh)]
    mixed.write_text("\n".join(["text", *(line.split(",", 1)[1] for line in used), *fresh, *fresh]))
    arguments = ("check", folder, "--texts", mixed, "--disagreement", 0.2, "--json")
    card = json.loads(run(*arguments).stdout)
    assert (card["rows"], card["left_out"]) == (603, 0)  # three rows of old texts are traffic
    grown = [line.split(",", 1)[1] for line in folders.texts.read_text().splitlines()[1:]]
    mixed.write_text("\n".join(["text", *grown, *fresh, *fresh]))
    card = json.loads(run(*arguments).stdout)
    assert (card["rows"], card["left_out"]) == (600, 400)  # the log of the folder, and new rows


def test_export_answers_as_the_folder_does(folders: Folders) -> None:
    texts = [row["text"] for row in rows_of(folders.fresh)]
    exits = open_folder(folders.exits)
    export = open_folder(folders.export)
    assert export.columns == ("text",)
    assert export.policy == exits.policy
    clear = clear_texts(folders, texts)
    for policy in (None, LastStep()):
        one = exits.answer(texts, policy)
        other = export.answer(texts, policy)
        assert_same_rows(one.labels, other.labels, clear)
        assert_same_rows(one.exit_step, other.exit_step, clear)


def test_a_promise_has_the_confidence_that_was_said(folders: Folders) -> None:
    opened = open_folder(folders.exits)
    assert opened.promise is not None
    assert opened.promise.confidence == 0.95
    for said, held in ((0.9, 0.9), (0.99, 0.95), (None, 0.95)):  # never more than was certified
        opened.card = {"confidence": said}
        assert opened.promise.confidence == held


def audits(folder: Path, reference: Path | None = None) -> int | None:
    """Return how many of four answers of a service were audited; None if it has no ledger."""
    from fastapi.testclient import TestClient

    from ponder.cli.commands.serve import app_of
    from ponder.deploy.server import Limits

    app = app_of(folder, Limits(), 1.0, None, reference)
    with TestClient(app) as client:
        labels = client.post("/predict", json={"texts": ["a b c", "d e", "f", "g h"]}).json()
        assert len(labels["labels"]) == 4
        ledger = client.get("/healthz").json()["ledger"]
    return None if ledger is None else ledger["answers"]


@pytest.mark.slow
def test_int8_is_certified_against_the_folder(run: Run, folders: Folders, tmp_path: Path) -> None:
    out = tmp_path / "int8"
    arguments = (
        "export",
        folders.exits,
        "--out",
        out,
        "--int8",
        "--texts",
        folders.fresh,
        "--disagreement",
        0.2,
    )
    result = run(*arguments)
    assert fits(result.stdout)
    assert "other answers than before int8 on at most 20%" in " ".join(result.stdout.split())
    policy = open_folder(out).policy
    assert isinstance(policy, Certified)
    made = policy.certificate
    assert (made.risk, made.weights, made.rows) == ("disagreement_with_reference", None, 200)
    used = " ".join(run("check", out, "--texts", folders.fresh, code=2).stderr.split())
    assert "300 of 300 rows that taught" in used
    fresh = tmp_path / "other.csv"
    fresh.write_text("text\n" + "\n".join(some_texts(1000)[700:]))
    for named in ((), ("--reference", folders.exits), ("--reference", folders.model)):
        assert "is kept" in run("check", out, "--texts", fresh, *named).stdout
    assert audits(out) == 4  # of the model before int8, which the folder remembers
    moved = folders.exits.rename(tmp_path / "moved")
    try:
        lost = run("check", out, "--texts", fresh, code=2).stderr
        assert "which does not exist" in " ".join(lost.split())
        assert audits(out) is None
        assert audits(out, moved) == 4
    finally:
        moved.rename(folders.exits)


def test_exports_run_without_torch_and_transformers(folders: Folders, tmp_path: Path) -> None:
    names = (
        "torch",
        "transformers",
        "safetensors",
        "jinja2",
        "matplotlib",
        "onnx",
        "scipy",
        "sklearn",
        "accelerate",
    )
    blocked = f"import sys\nfor name in {names}: sys.modules[name] = None\n"
    out = tmp_path / "answers.csv"
    arguments = ["predict", folders.export, "--texts", folders.fresh, "--out", out]
    command = f"sys.argv[1:] = {[str(argument) for argument in arguments]!r}"
    code = (
        f"{blocked}{command}\nfrom ponder.cli import main\nimport ponder.cli.commands.serve\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(rows_of(out)) == 300


def test_serve_opens_folders_and_refuses_a_port_in_use(run: Run, folders: Folders) -> None:
    from fastapi.testclient import TestClient

    from ponder.cli.commands.serve import app_of
    from ponder.deploy.server import Limits

    texts = ["a b c", "d e"]
    found = []
    for folder in (folders.exits, folders.export):
        with TestClient(app_of(folder, Limits(), 1.0, None)) as client:
            found.append(client.post("/predict", json={"texts": texts}).json())
            assert client.get("/healthz").json()["ledger"] is not None
    clear = clear_texts(folders, texts)
    for column in ("labels", "exit_step"):
        assert_same_rows(found[0][column], found[1][column], clear)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"got {port}" in run("serve", folders.export, "--port", port, code=2).stderr


def test_version_and_help(run: Run) -> None:
    from importlib.metadata import version

    assert run("--version").stdout == f"ponder {version('ponder-torch')}\n"
    shown = run("--help").stdout
    assert all(name in shown for name in ("exits", "predict", "check", "export", "serve"))


def test_progress_is_a_line_every_ten_seconds_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 4.0, 11.0, 11.0, 20.0, 22.0, 22.0])
    with progress(lambda: next(now)) as advance:
        for done in range(1, 5):
            advance("learn", done, 4)
    assert capsys.readouterr().err == "learn: 2 of 4\nlearn: 4 of 4\n"


def test_threads_of_a_command_are_those_of_pytorch_and_of_exports(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from ponder.cli.app import app
    from ponder.deploy.sessions import Graph

    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # is put back after the test
    assert CliRunner().invoke(app, ["--threads", "3", "certify", "missing"]).exit_code == 2
    assert os.environ["OMP_NUM_THREADS"] == "3"
    graph = next(folders.export.glob("step*.onnx"))
    for value, threads in (("3", 3), ("2,1", 2), ("", 0)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        session = Graph(graph)._session
        assert session.get_session_options().intra_op_num_threads == threads


@pytest.mark.parametrize("call", [["--help"], ["predict", "--help"], ["certify"]])
def test_a_reader_that_has_gone_ends_a_command_without_a_word(
    call: list[str], tmp_path: Path
) -> None:
    answers = tmp_path / "answers.csv"
    rows = [f"{n},0.9,{n}" for n in range(400)]
    answers.write_text("\n".join(["answer,confidence,reference", *rows]))
    if call == ["certify"]:
        call = ["certify", str(answers), "--out", str(tmp_path / "threshold.json"), "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-c", "from ponder.cli import main; main()"]
    done = subprocess.run([*program, *call], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


LISTED = """
import sys
from typer.testing import CliRunner
from ponder.cli.app import app
result = CliRunner().invoke(app, sys.argv[1:])
assert result.exit_code == 0, result.output
assert "Label texts by a reference" in result.output
imported = [name for name in sys.modules if name.startswith("ponder.cli.commands.")]
print(*imported, "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("call", "loaded"),
    [(["--help"], "False"), (["label", "--help"], "ponder.cli.commands.label False")],
)
def test_the_file_of_the_called_command_alone_is_imported(call: list[str], loaded: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", LISTED, *call], check=True, capture_output=True, text=True
    )
    assert found.stdout.strip() == loaded
