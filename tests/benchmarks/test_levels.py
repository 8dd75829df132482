"""Steps against difficulty: problems of every size, the rule of choice, and a run in its smallest size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.loops import cli
from benchmarks.loops.levels import measuring, report
from benchmarks.loops.problems import PUZZLES
from tests.benchmarks.test_others import invoke


@pytest.mark.parametrize("name", PUZZLES)
def test_problems_are_right_and_follow_from_the_seed(name: str) -> None:
    puzzle = PUZZLES[name]
    one, again, other = (puzzle.draw(puzzle.levels[0], 8, seed) for seed in (0, 0, 1))
    assert torch.equal(one.inputs, again.inputs)
    assert not torch.equal(one.inputs, other.inputs)
    if name == "prefix-sums":
        assert torch.equal(one.labels, (one.inputs[:, 0] > 0).long().cumsum(-1) % 2)
    else:  # every cell of the way but its ends is open to two others of the way
        side = puzzle.levels[0]
        way = one.labels.view(8, side, side)
        ends = (one.inputs[:, 4:6] > 0).any(1)
        neighbours = torch.zeros_like(way)
        for channel, (down, right) in enumerate(((0, 1), (1, 0), (0, -1), (-1, 0))):
            there = torch.roll(way, shifts=(-down, -right), dims=(1, 2))
            neighbours += (one.inputs[:, channel] > 0) & (there == 1)
        assert (neighbours[way == 1] == torch.where(ends, 1, 2)[way == 1]).all()


def test_levels_run_and_report_in_their_smallest_size(tmp_path: Path) -> None:
    small = [
        f"--set={field}"
        for field in ("updates=4", "examples=3", "num_steps=3", "gradient_steps=3", "width=4")
    ]
    arguments = ("levels", "run", "prefix-sums", *small, "--set=run_steps=10", "--out", tmp_path)
    assert invoke(cli.app, *arguments) == invoke(cli.app, *arguments)
    (result,) = report.results(tmp_path)["prefix-sums"]
    assert len(result["by_step"]["test"]["all"]) == 10
    oracle, last = (result["ways"][way]["test"] for way in ("oracle", "last step"))
    assert oracle["accuracy"] >= last["accuracy"]
    printed = invoke(cli.app, "levels", "report", "--out", tmp_path)
    assert "(chosen by 1 of 1)" in printed
    report.draw_figure(tmp_path / "figure.svg", report.results(tmp_path))


def test_the_cheapest_rule_that_is_as_accurate_is_chosen() -> None:
    levels = np.array([1, 1, 2, 2])
    scores = [
        measuring.Score(np.array(right, dtype=bool), np.array(steps), levels)
        for right, steps in (
            ([1, 1, 0, 0], [1, 1, 1, 1]),
            ([1, 1, 1, 1], [1, 2, 3, 4]),
            ([1, 1, 1, 1], [4, 4, 4, 4]),
        )
    ]
    assert measuring._cheapest(scores, 1.0) == 1
    assert measuring._cheapest(scores, 0.5) == 0
    assert measuring._cheapest(scores[:1], 1.0) == 0
    assert scores[1].to_dict()["rank_correlation"] == pytest.approx(1.0)


def test_the_demo_of_puzzles_draws_its_figure(tmp_path: Path) -> None:
    from benchmarks.loops.levels import demo

    found = demo.demo(2, examples=2)
    demo.draw(tmp_path / "puzzles.svg", found)
    assert [level["level"] for level in found["by_level"]] == list(PUZZLES["prefix-sums"].levels)
    assert "<svg" in (tmp_path / "puzzles.svg").read_text()
