"""Exits of trained models are recorded, and timed as they are; what is computed is not asserted in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.files import read_json, write_json
from benchmarks.loops import cli as loops
from benchmarks.positions import cli
from benchmarks.positions.exits import read
from tests.benchmarks.test_others import invoke


@pytest.mark.usefixtures("few_updates")
def test_exits_of_a_trained_model_are_timed_as_they_are(tmp_path: Path) -> None:
    small = ("--set=updates=4", "--set=width=16", "--set=num_steps=3", "--problems", 6)
    invoke(loops.app, "run", "sudoku-4x4", *small, "--out", tmp_path)
    file = tmp_path / "exits.json"
    invoke(cli.app, "record", tmp_path, "--out", file)
    (found,) = read(file)
    assert found.exits.shape == (6, 16)
    assert 1 <= int(found.exits.min()) <= int(found.exits.max()) <= found.max_steps == 3
    written = read_json(file)
    written["sudoku-4x4"]["exits"][0][:8] = [1, 2] * 4  # this model is hardly trained
    write_json(file, written)
    (found,) = read(file)
    arguments = ("--turns", 1, "--width", 64, "--exits", file, "--out", tmp_path)
    threads = torch.get_num_threads()
    printed = invoke(cli.app, "run", *arguments)
    torch.set_num_threads(threads)
    assert "sudoku-4x4" in printed
    timings = read_json(tmp_path / "positions.json")["timings"]
    assert [timing["step"] for timing in timings] == ["block", "albert"]
    mean, last = found.exits.double().mean(), found.exits.amax(1).double().mean()
    for timing in timings:
        assert timing["mean_step"] == float(mean)
        assert timing["steps_times_over_rows"] == float(last) / float(mean)
