"""The benchmark of cascades in its smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.cascades import cli, curve, measuring, redraws
from benchmarks.finetuned import schedules


def invoke(*arguments: object) -> None:
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if done.exit_code:
        raise AssertionError(done.output) from done.exception


@pytest.mark.slow
def test_cascades_stand_beside_exits_and_a_blind_mix(
    backbone: str, glue_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (measuring, redraws):
        monkeypatch.setattr(module, "LEVELS", (0.3, 0.4))
    monkeypatch.setattr(curve, "LEVEL", 0.3)
    monkeypatch.setattr(curve, "COUNTS", (100,))
    monkeypatch.setattr(schedules, "ROWS", {"SST-2": 150})
    monkeypatch.setattr(schedules, "_EPOCHS", {"SST-2": 16})
    monkeypatch.setattr(schedules, "_RATES", {backbone: 5e-3})
    monkeypatch.setattr(measuring, "_ROUNDS", 1)
    monkeypatch.setattr(redraws, "DRAWS", 4)
    monkeypatch.setattr(redraws, "FEWER", 2)
    given = (
        "--task",
        "sst2",
        "--glue-dir",
        glue_dir,
        "--backbone",
        backbone,
        "--work",
        tmp_path,
        "--out",
        tmp_path,
    )
    invoke("run", *given)
    found = json.loads((tmp_path / "sst-2-tiny-s0.json").read_text())
    ways = found["promises"]["0.3"]
    assert list(ways) == [
        *("exits", "cascade", "cascade with exits"),
        *("int8 exits", "int8 cascade", "int8 cascade with exits", "blind mix"),
    ]
    assert ways["exits"]["batches"]["times"][1] > 0
    share = ways["cascade"]["student_answers"]
    mix = ways["blind mix"]
    assert mix["other"] == pytest.approx(share * found["student"]["other"])
    invoke("curve", *given)
    points = json.loads((tmp_path / "curve-sst-2-tiny-s0.json").read_text())["rows"]
    assert {point["texts"] for point in points} == {
        100,
        found["texts"]["teach"] + found["texts"]["certify"],
    }
    invoke("redraws", *given)
    outcomes = json.loads((tmp_path / "redraws-sst-2.json").read_text())["rows"]
    assert [outcome["draws"] for outcome in outcomes] == [4, 2, 4, 2, 2, 2]
