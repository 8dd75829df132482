"""`ponder serve`: a real server on a free port of this machine, started and stopped once; and what it refuses."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner

import ponder.cli.serve
from ponder._utils.files import alone
from ponder.cli import serving
from ponder.cli.app import app
from ponder.cli.serving import audit_plan, server
from ponder.integrations.transformers import FinetunedClassifier
from ponder.integrations.transformers.serving import open_folder
from ponder.policies import Certified, Confidence
from tests.exits_folder import make_folder

OPTIONS = {"host": "127.0.0.1", "port": 0, "batching": "stream", "threads": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model"))


class Running(uvicorn.Server):
    """A server in a thread, which tells when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.up.set()


def test_a_server_starts_answers_and_stops(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.uvicorn, "Server", Running)
    running: Any = server(folder, OPTIONS, {"deadline": 60.0, "max_body": 1000}, {"share": 0.5, "path": None})
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        assert running.up.wait(60)
        port = running.servers[0].sockets[0].getsockname()[1]
        assert running.servers[0].sockets[0].getsockname()[0] == "127.0.0.1"
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            told = client.post("/predict", json={"texts": ["w1 w2 w3", "w4"]})
            assert told.status_code == 200
            assert {answer["label"] for answer in told.json()["answers"]} <= {"no", "yes"}
            assert client.post("/predict", json={"text": "w1 " * 400}).status_code == 413
            health = client.get("/healthz").json()
            assert (health["status"], health["folder_changed"]) == ("ok", False)
            assert "ponder_texts_total 2.0" in client.get("/metrics").text
    finally:
        running.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


def test_the_options_reach_the_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[uvicorn.Config] = []

    class Unstarted(uvicorn.Server):
        def run(self, sockets: Any = None) -> None:
            made.append(self.config)

    monkeypatch.setattr(serving.uvicorn, "Server", Unstarted)
    done = CliRunner().invoke(app, ["serve", str(folder), "--port", "8123", "--deadline", "0", "--batching", "window"])
    assert done.exit_code == 0, done.output
    (config,) = made
    assert (config.host, config.port, config.timeout_graceful_shutdown) == ("127.0.0.1", 8123, None)
    assert "policy: Confidence(threshold=0.7)" in done.stderr
    assert "audit: none" in done.stderr


@pytest.fixture(scope="module")
def certified(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = FinetunedClassifier.from_pretrained(folder)
    path = ((0.99, 0.0, 0.001), (0.9, 0.0, 0.002), (0.8, 0.0, 0.003), (0.7, 0.001, 0.004))
    model.policy = Certified(
        Confidence(0.7), "…", "disagreement", 0.02, 0.9, "exact_binomial", 500, "threshold", 0.7, 0.004, path
    )
    saved = make_folder(tmp_path_factory.mktemp("certified"))
    model.save_pretrained(saved)
    return saved


def test_a_certificate_is_audited(certified: Path, tmp_path: Path) -> None:
    plan = audit_plan(open_folder(certified), 0.1, tmp_path / "audit.json")
    assert plan is not None
    assert (plan.audit.level, plan.audit.confidence, plan.audit.share) == (0.02, 0.9, 0.1)
    assert plan.policies[1:] == (Confidence(0.9), Confidence(0.99))
    assert audit_plan(open_folder(certified), 0.0, None) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "expected the format 'ponder-served-audit-1'; got None"),
        ("config.json/audit.json", "config.json/audit.json: "),
    ],
)
def test_a_file_of_audits_that_cannot_be_kept_is_one_sentence(certified: Path, name: str, message: str) -> None:
    done = CliRunner().invoke(app, ["serve", str(certified), "--port", "0", "--audit-file", str(certified / name)])
    assert done.exit_code == 1
    said = " ".join(done.stderr.split())
    assert said.startswith("ponder: audit_file: expected the state of these audits, or a place where")
    assert message in said
    assert said.endswith("Pass another --audit-file.")


def test_a_file_of_audits_that_another_server_keeps_is_one_sentence(certified: Path, tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    with alone(path):
        done = CliRunner().invoke(app, ["serve", str(certified), "--port", "0", "--audit-file", str(path)])
    assert done.exit_code == 1
    said = " ".join(done.stderr.split())
    assert said.startswith("ponder: audit_file: expected the state of these audits, or a place where")
    assert "audit.json: another process keeps this file" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-texts", "9", "--max-waiting", "8"], "max_texts: expected at most max_waiting, 8; got 9"),
        (["--deadline", "-1"], "deadline: expected a finite number > 0; got -1.0"),
    ],
)
def test_bounds_that_cannot_be(folder: Path, words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["serve", str(folder), *words])
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())


def test_a_port_that_is_taken_is_one_sentence(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(app, ["serve", str(folder), "--port", str(port)])
    assert done.exit_code == 1
    said = " ".join(done.stderr.split())
    assert said.startswith(f"ponder: port: expected one that is free on 127.0.0.1; got {port} (")
    assert "--port 0" in said


@pytest.mark.parametrize("fails", [socket.gaierror(-2, "no such name"), UnicodeError("label empty"), None])
def test_a_host_that_is_none_of_this_machine_is_one_sentence(
    fails: Exception | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(*given: Any, **named: Any) -> Any:
        if fails is not None:
            raise fails

    monkeypatch.setattr(serving.socket, "getaddrinfo", look_up)
    host = "192.0.2.1" if fails is None else "nohost.invalid"  # an address for documentation, which no machine has
    done = CliRunner().invoke(app, ["serve", str(folder), "--host", host, "--port", "0"])
    assert done.exit_code == 1
    said = " ".join(done.stderr.split())
    assert said.startswith(f"ponder: host: expected an address or a name of this machine; got {host} (")


def test_what_a_server_says_fits_80_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server(folder, OPTIONS, {}, {"share": 0.5, "path": None})
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("policy: ")
    assert max(map(len, said)) <= 80


@pytest.mark.parametrize(
    ("stage", "lines"),
    [
        (0, ["policy: Certified(Confidence(threshold=0.7)", "audit: 0.5 of the answers"]),
        (1, ["policy: Confidence(threshold=0.9)", "; stepped back from Certified(Confidence(threshold=0.7)"]),
        (3, ["policy: LastStep()", "audit: none any more: the promise could not be held, and full depth answers"]),
    ],
)
def test_a_server_names_the_policy_that_answers_after_a_restart(
    stage: int, lines: list[str], certified: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Trap: it named the first, although the audits had stepped back from it.
    audit = {"share": 0.5, "path": tmp_path / "audit.json"}
    plan = audit_plan(open_folder(certified), **audit)
    assert plan is not None
    assert plan.file is not None
    state = plan.resumed()
    while state.stage < stage:
        state.record(True)
    plan.file.write(state.to_dict())
    server(certified, OPTIONS, {}, audit)
    said = " ".join(capsys.readouterr().err.split())
    assert all(line in said for line in lines), said


def test_a_folder_that_cannot_be_served(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    done = CliRunner().invoke(app, ["serve", str(tmp_path)])
    assert done.exit_code == 1
    assert "got none of them" in " ".join(done.stderr.split())


def test_a_missing_library_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ponder.cli.serve, "_NEEDED", ("no_such_library",))
    done = CliRunner().invoke(app, ["serve", str(folder)])
    assert done.exit_code == 1
    assert "pip install 'ponder-torch[serve]'" in done.stderr
