"""The benchmark of kinds of quantisation."""

from pathlib import Path

import pytest

from benchmarks.quantised.cli import rows
from benchmarks.quantised.measuring import KINDS, measure
from ponder._utils.files import read_json
from tests.quick_exports import make_exports_quick

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks/results/quantised/quantised.json"


def test_every_kind_is_held_against_fp32(backbone):
    pytest.importorskip("onnxruntime", reason="exports need the extra onnx")
    pytest.importorskip("onnxscript", reason="exports need the extra onnx")
    make_exports_quick()
    found = measure(backbone, texts=6, calibrating=6)
    assert list(found) == list(KINDS)
    for told in found.values():
        assert 0.9 < told["worst"] <= told["median"] < 1.0 + 1e-6
    assert len({told["worst"] for told in found.values()}) > 2


def test_the_page_tells_what_was_measured():
    page = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    cosines = read_json(RESULT)["cosines"]
    for row in rows(cosines):
        assert f"| {' | '.join(row)} |" in page
    for told in cosines.values():  # what a calibration is said to bring
        for kind in ("all products", "but for those that narrow"):
            assert told[f"{kind}, calibrated"]["worst"] > told[kind]["worst"]
