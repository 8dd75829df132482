"""The numbers of README are those of the committed results; the message of a failure is the row to write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text().splitlines()


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def figure(name: str, case: str, figure: str) -> float:
    (found,) = [
        one
        for one in read(f"speed/{name}.json")["figures"]
        if one["case"] == case and one["figure"] == figure
    ]
    return float(found["value"])


@pytest.mark.parametrize("name", ["as it is", "exits", "cascade", "int8", "int8 + exits"])
def test_advice(name: str) -> None:
    one = read("advice/banking77-minilm-s0.json")
    (way,) = [way for way in one["race"] if way["name"] == name]
    (test,) = [way for way in one["test"]["ways"] if way["name"] == name]
    marked = f"**{name}**" if way["wins"] else name
    row = (
        f"| {marked} | {1e3 * way['seconds'][0]:.2f} | {way['speed_up'][0]:.2f} | {way['promise']:.0%} "
        f"| {test['other_answers']:.2%} | {test['accuracy']:.1%} | {way['megabytes']:.0f} |"
    )
    assert row in README, row


def test_int8() -> None:
    alone, exits = (
        figure("exporting", "MiniLM, 8 × 32", f"speed-up of {kind} over PyTorch fp32")
        for kind in ("int8 of all", "int8 of all, exits")
    )
    row = (
        f"| int8 alone, in onnxruntime | {alone:.1f} times the throughput of PyTorch fp32; with exits {exits:.1f} "
        "times (MiniLM, 8 rows of 32 tokens) |"
    )
    assert row in README, row


def test_smaller_models() -> None:
    tasks = json.loads((ROOT / "docs" / "results-summary.json").read_text())["minilm"]["2"]["tasks"]
    known = {task: scores for task, scores in tasks.items() if scores["deebert"] is not None}
    pairs = [
        f"{task} {scores['static']:.1f} against {scores['deebert']:.1f}"
        for task, scores in known.items()
    ]
    row = (
        "| a model with fewer layers, fine-tuned | it depends on the task; MiniLM at ×2 in steps, "
        f"against exits of `deebert`: {', '.join(pairs)} |"
    )
    assert row in README, row
