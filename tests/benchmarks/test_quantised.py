"""The benchmark of kinds of quantisation."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.quantised import cli
from benchmarks.quantised.cli import rows
from benchmarks.quantised.measuring import KINDS, measure
from ponder._utils.files import read_json
from ponder.errors import ArgumentError, DataError, PonderError
from tests.quick_exports import make_exports_quick

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks/results/quantised/quantised.json"


def test_every_kind_is_held_against_fp32(shallow):
    pytest.importorskip("onnxruntime", reason="exports need the extra onnx")
    pytest.importorskip("onnxscript", reason="exports need the extra onnx")
    make_exports_quick()
    found = measure(shallow, texts=6, calibrating=6)
    assert list(found) == list(KINDS)
    for told in found.values():
        assert 0.9 < told["worst"] <= told["median"] < 1.0 + 1e-6
    assert len({told["worst"] for told in found.values()}) > 2


TOLD = {kind: {"median": 1.0, "worst": 0.5} for kind in KINDS}


def test_a_committed_result_keeps_its_other_backbones_and_is_not_replaced_by_other_settings(tmp_path, monkeypatch):
    before = json.loads(shutil.copy(RESULT, tmp_path / "quantised.json").read_text())
    monkeypatch.setattr(cli, "measure", lambda *given: pytest.fail("measured, and then refused"))
    other = CliRunner().invoke(cli.app, ["--backbone", "minilm", "--texts", "4", "--out", str(tmp_path)])
    assert isinstance(other.exception, ArgumentError)
    assert "--out: expected a folder without a result of other settings" in str(other.exception)
    assert json.loads((tmp_path / "quantised.json").read_text()) == before
    monkeypatch.setattr(cli, "measure", lambda name, texts, calibrating: TOLD)
    assert CliRunner().invoke(cli.app, ["--backbone", "minilm", "--out", str(tmp_path)]).exit_code == 0
    after = json.loads((tmp_path / "quantised.json").read_text())
    assert after["cosines"] == {**before["cosines"], "minilm": TOLD}
    assert after["settings"] == before["settings"]
    assert after["environments"]["mpnet"] == before["environment"]
    assert after["environments"]["minilm"] != before["environment"]


def test_each_backbone_is_written_as_it_is_measured(tmp_path, monkeypatch):
    def measured(name, texts, calibrating):
        if name == "second":
            raise PonderError("no such backbone")
        return TOLD

    monkeypatch.setattr(cli, "measure", measured)
    both = ["--backbone", "first", "--backbone", "second", "--texts", "4", "--out", str(tmp_path)]
    assert CliRunner().invoke(cli.app, both).exit_code == 1
    assert read_json(tmp_path / "quantised.json")["cosines"] == {"first": TOLD}
    monkeypatch.setattr(cli, "measure", lambda name, texts, calibrating: TOLD)
    assert CliRunner().invoke(cli.app, both).exit_code == 0
    assert read_json(tmp_path / "quantised.json")["cosines"] == {"first": TOLD, "second": TOLD}


def test_wrong_pages_and_folders_are_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "measure", lambda *given: pytest.fail("measured, and then refused"))
    out, page = tmp_path / "out", tmp_path / "page.md"
    page.write_text("# No marks\n")
    done = CliRunner().invoke(cli.app, ["--out", str(out), "--page", str(page)])
    assert "expected the lines" in str(done.exception)
    done = CliRunner().invoke(cli.app, ["--report", "--out", str(out)])
    assert isinstance(done.exception, DataError)
    assert "no results quantised.json. Run `python -m benchmarks.quantised` first." in str(done.exception)
    assert not out.exists()


def test_the_page_tells_what_was_measured():
    page = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    cosines = read_json(RESULT)["cosines"]
    for row in rows(cosines):
        assert f"| {' | '.join(row)} |" in page
    for told in cosines.values():  # what a calibration is said to bring
        for kind in ("all products", "but for those that narrow"):
            assert told[f"{kind}, calibrated"]["worst"] > told[kind]["worst"]
