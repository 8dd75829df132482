"""A folder that changes while its model is served is noticed, by content and not by time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ponder.errors import CheckpointError
from ponder.serving import create_app
from ponder.serving.watching import FolderWatch, digests_of
from tests.ponder.serving.serving_toys import opened, served, toy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ".hidden").write_text("")
    (tmp_path / "inside").mkdir()
    return tmp_path


def test_what_changes_and_what_does_not(folder: Path) -> None:
    watch = FolderWatch(folder, digests_of(folder))
    weights = folder / "model.safetensors"
    assert not watch.changed()
    os.utime(weights, (1, 1))
    assert not watch.changed(), "the same content"
    (folder / "audit.json").write_text("{}")
    assert not watch.changed(), "no file of the model"
    weights.write_bytes(b"WEIGHTS")
    assert watch.changed()
    weights.write_bytes(b"weights")
    assert not watch.changed(), "put back"
    weights.unlink()
    assert watch.changed()
    weights.write_bytes(b"weights")
    assert not watch.changed()


def test_what_the_service_writes_there_is_no_change(folder: Path) -> None:
    audit = folder / "audit.json"
    audit.write_text("{}")
    watch = FolderWatch(folder, digests_of(folder), folder / "." / "audit.json")
    audit.write_text('{"audits": 1}')
    assert not watch.changed()
    (folder / "config.json").write_text("{ }")
    assert watch.changed()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a folder that can be read"):
        digests_of(tmp_path / "no")


@pytest.mark.anyio
async def test_healthz_tells_and_answers_go_on(folder: Path) -> None:
    model = served(toy(), folder=folder, digests=digests_of(folder))
    async with opened(create_app(model)) as client:
        assert (await client.get("/healthz")).json()["folder_changed"] is False
        (folder / "config.json").write_text("{ }")
        health = await client.get("/healthz")
        assert health.status_code == 200
        assert health.json()["folder_changed"] is True
        assert health.json()["folder"] == str(folder)
        assert "ponder_folder_changed 1.0" in (await client.get("/metrics")).text
        assert (await client.post("/predict", json={"text": "a"})).status_code == 200
