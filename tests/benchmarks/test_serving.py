"""The soak in small and without sockets, its books, and the figures of a load on servers that are not there."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.serving import cli
from benchmarks.serving.asking import Notes, asked, read_notes
from benchmarks.serving.connection import Connection, request_bytes
from benchmarks.serving.soak import faults, in_process
from ponder.errors import ArgumentError


@pytest.fixture(scope="module")
def soaked() -> tuple[dict[str, Any], Notes]:
    return asyncio.run(in_process(500))


def test_nothing_is_lost_and_nothing_answered_twice(soaked: tuple[dict[str, Any], Notes]) -> None:
    written, notes = soaked
    assert faults(written, notes) == []
    assert notes.left, "some clients left"
    assert {"200", "429", "504"} <= written["statuses"].keys(), "answered, full, too late"
    assert len(notes.sent) == 500
    assert notes.sent == notes.left | notes.answers.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda written, notes: written.update(answered_twice=[3]), "answered twice"),
        (lambda written, notes: notes.broken.add(written["arrived_numbers"][0]), "were not answered"),
        (lambda written, notes: notes.answered(next(iter(notes.answers)), 200, None), "their client got answered"),
        (lambda written, notes: written.update(waiting=1), "still wait"),
        (lambda written, notes: written["outcomes"].update(answered=0), "counts of the service"),
        (lambda written, notes: written["statuses"].update({"500": 1}), "statuses that should not be"),
        (lambda written, notes: _swap(notes), "wrong answers"),
    ],
)
def test_the_books_show_what_is_wrong(soaked: tuple[dict[str, Any], Notes], change: Any, message: str) -> None:
    written, notes = soaked
    copy = Notes(set(notes.sent), set(notes.left), set(notes.broken), dict(notes.answers), set())
    changed = json.loads(json.dumps(written))
    change(changed, copy)
    if message == "their client got answered":
        assert copy.doubled
        copy.answers = dict(notes.answers)
    assert message in "; ".join(faults(changed, copy))


def _swap(notes: Notes) -> None:
    """Give one request the answers of another, whose texts are others."""
    right = [number for number, (status, _) in notes.answers.items() if status == 200]
    one = right[0]
    label = notes.answers[one][1]["answers"][0]["label"]
    notes.answers[one] = 200, {"answers": [{"label": f"not {label}", "exit_step": 1, "overdue": False}]}


def test_notes_of_a_client_that_was_killed_in_a_line() -> None:
    lines = ['["sent", 3]\n', '["answered", 3, 200, {"answers": []}]\n', '["sent", 4]\n', '["left", 4]\n', '["se']
    notes = read_notes(lines)
    assert (notes.sent, notes.left, notes.broken) == ({3, 4}, {4}, set())
    assert notes.answers == {3: (200, {"answers": []})}


def test_a_result_of_other_settings_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "measure", lambda *given: [])
    loaded = ["load", "--out", str(tmp_path)]
    for _ in range(2):  # a measurement may be made again
        assert CliRunner().invoke(cli.app, [*loaded, "--texts", "1"]).exit_code == 0
    assert json.loads((tmp_path / "load.json").read_text())["settings"]["texts"] == [1]
    (tmp_path / "soak.json").write_text('{"settings": {"requests": 50000, "seed": 0}}')
    monkeypatch.setattr(cli, "measure", lambda *given: pytest.fail("measured, and then refused"))
    monkeypatch.setattr(cli, "run", lambda *given: pytest.fail("asked, and then refused"))
    for other in ([*loaded, "--texts", "2"], ["soak", "--requests", "50", "--out", str(tmp_path)]):
        done = CliRunner().invoke(cli.app, other)
        assert isinstance(done.exception, ArgumentError)
        assert "--out: expected a folder without a result of other settings" in str(done.exception)
    typo = CliRunner().invoke(cli.app, ["load", "--tokens", "many", "--out", str(tmp_path / "other")])
    assert isinstance(typo.exception, ArgumentError)
    assert not (tmp_path / "other").exists()


def test_requests_are_functions_of_their_numbers() -> None:
    assert asked(7) == asked(7)
    kinds = [asked(number) for number in range(400)]
    assert any(request.leaves for request in kinds)
    assert any("deadline" in request.body for request in kinds)
    assert any("texts" in request.body for request in kinds)


def test_a_connection_reads_one_answer_after_the_other() -> None:
    async def answers() -> list[tuple[int, bytes]]:
        reader = asyncio.StreamReader()
        for body in (b"{}", b"[1, 2]"):
            reader.feed_data(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        reader.feed_eof()
        connection = Connection(reader, None)  # type: ignore[arg-type]
        found = [await connection.answer(), await connection.answer()]
        with pytest.raises(ConnectionError):
            await connection.answer()
        return found

    assert asyncio.run(answers()) == [(200, b"{}"), (200, b"[1, 2]")]
    assert request_bytes("/predict", {"a": 1}, {"x-number": "3"}).startswith(b"POST /predict HTTP/1.1\r\nhost: ")
