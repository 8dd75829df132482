"""`ponder label`: a function or a server of the OpenAI shape labels a file, stops at a limit, and goes on."""

from __future__ import annotations

import csv
import json
import socket
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ponder.cascade.asking import Asking
from ponder.cascade.clients import ChatLabels
from ponder.cli.app import app
from ponder.errors import PonderError
from tests.integrations.encoders import make_plain, make_tokenizer, some_texts

CONNECT = socket.socket.connect
TEXTS = [f"{word} number {n}" for n in range(600) for word in ("my card", "a loan")]


class Stub(BaseHTTPRequestHandler):
    """Answers as an LLM would: in capitals, with a full stop."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][1]["content"]
        said = "CARD." if "card" in text else "I do not know" if "odd" in text else "Loan"
        reply = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *given: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(socket.socket, "connect", CONNECT)  # to the stub alone
    made = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}/v1"
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(TEXTS)])
    (tmp_path / "labels.txt").write_text("card\nloan\n")
    code = "def ask(texts):\n    return ['card' if 'card' in text else 'loan' for text in texts]\n"
    (tmp_path / "asked_in_test.py").write_text(code)
    return tmp_path


def label(*options: str) -> Any:
    files = ["--out", "out.csv", "--db", "labels.db", "--json"]
    return CliRunner().invoke(app, ["label", "texts.csv", *options, *files])


def test_a_function_labels_a_file_stops_at_a_limit_and_goes_on(folder: Path) -> None:
    sys.modules.pop("asked_in_test", None)
    first = label("--with", "asked_in_test:ask", "--level", "0.05", "--limit-calls", "100")
    assert first.exit_code == 3, first.output
    assert json.loads(first.stdout)["asked"] == 100
    second = label("--with", "asked_in_test:ask", "--level", "0.05", "--price", "0.01")
    assert second.exit_code == 0, second.output
    facts = json.loads(second.stdout)
    assert facts["answers"] == len(TEXTS)
    assert facts["asked"] < len(TEXTS)
    assert facts["bound"] <= 0.05 * len(TEXTS)
    with (folder / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == TEXTS
    assert {row["source"] for row in rows} == {"cheap", "reference"}
    wrong = [row for row in rows if row["label"] != ("card" if "card" in row["text"] else "loan")]
    assert len(wrong) <= facts["bound"]
    again = json.loads(label("--with", "asked_in_test:ask", "--level", "0.05").stdout)
    assert (again["asked"], again["answers"]) == (facts["asked"], facts["answers"])


def test_a_server_of_the_openai_shape_is_asked(folder: Path, server: str) -> None:
    (folder / "texts.csv").write_text("text\nmy card\na loan\n")
    found = label("--with", "openai:any", "--base-url", server, "--labels", "labels.txt")
    assert found.exit_code == 0, found.output
    with (folder / "out.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["card", "loan"]
    with pytest.raises(PonderError, match="not one of the labels"):
        ChatLabels("any", ["card", "loan"], server)(["an odd one"])


def test_a_gateway_that_is_down_stops_the_command_with_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ponder.cli.commands.label.Asking", partial(Asking, backoff=0.0))
    calls = folder / "calls.txt"
    (folder / "down_in_test.py").write_text(
        "def ask(texts):\n"
        f"    with open({str(calls)!r}, 'a') as file:\n"
        "        file.write('x')\n"
        "    raise OSError('refused')\n"
    )
    command = ["label", "texts.csv", "--with", "down_in_test:ask", "--db", "labels.db"]
    found = CliRunner().invoke(app, [*command, "--out", "out.csv"])
    assert found.exit_code == 3, found.output
    words = " ".join(found.stdout.split())
    assert "1200 texts wait for the next run. The reference is down; it last said: OSError" in words
    assert len(calls.read_text()) < 30


@pytest.mark.parametrize("reference", ["no_such_module:ask", "asked_in_test:none", "openai:any"])
def test_what_cannot_be_asked_is_refused(folder: Path, reference: str) -> None:
    assert label("--with", reference).exit_code == 2


MODULE = """
from transformers import pipeline

classify = pipeline("text-classification", model="model", tokenizer="model")


def ask(texts):
    return [each["label"] for each in classify(texts)]
"""


def test_a_model_of_transformers_in_a_folder_labels_a_file(folder: Path) -> None:
    plain = make_plain(labels=3)
    plain.save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    texts = some_texts(900)
    with (folder / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    (folder / "pipeline_in_test.py").write_text(MODULE)
    sys.modules.pop("pipeline_in_test", None)
    found = label("--with", "pipeline_in_test:ask", "--level", "0.3")
    assert found.exit_code == 0, found.output
    facts = json.loads(found.stdout)
    labels = sys.modules["pipeline_in_test"].ask(texts)
    with (folder / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    differ = [row["label"] != own for row, own in zip(rows, labels, strict=True)]
    asked = [row["source"] == "reference" for row in rows]
    assert len(set(labels)) > 1
    assert 0 < sum(asked) == facts["asked"] < len(texts)
    assert not any(wrong and known for wrong, known in zip(differ, asked, strict=True))
    assert sum(differ) <= facts["bound"] <= 0.3 * len(texts)
