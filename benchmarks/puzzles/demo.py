"""The two-minute version: prefix sums, and a plot that shows steps growing with difficulty."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import new_figure, save_svg
from benchmarks.puzzles.config import SMALL
from benchmarks.puzzles.learners import Looped
from benchmarks.puzzles.measuring import problems_of, replayed, told
from benchmarks.puzzles.training import train
from ponder import policies

__all__ = ["UPDATES", "demo", "draw"]

UPDATES = 2000
_PATIENCE = 2


def demo(updates: int = UPDATES) -> dict[str, Any]:
    """Train on up to 32 bits, stop once the answer has rested, and tell how up to 64 bits went."""
    config = replace(SMALL["prefix-sums"], updates=updates, examples=200)
    torch.manual_seed(0)
    learner = Looped(config)
    train(learner, config, seed=0)
    learner.eval()
    with torch.no_grad():
        rules = [policies.Converged(patience=_PATIENCE)]
        return told(replayed(learner.model, problems_of(config, "test"), config.run_steps, rules).scores[0])


def draw(path: Path, told: dict[str, Any]) -> None:
    """Mean exit step and share of problems solved, by the number of bits."""
    puzzle = SMALL["prefix-sums"].task
    figure = new_figure(6, 3.4)
    steps = figure.subplots()
    bits = [entry["level"] for entry in told["by_level"]]
    steps.plot(bits, [entry["mean_steps"] for entry in told["by_level"]], "o-", color="#0072B2")
    steps.set_xlabel("bits (trained up to the dashed line)")
    steps.set_ylabel("mean exit step", color="#0072B2")
    steps.set_ylim(bottom=0)
    steps.axvline(max(puzzle.trained_levels), color="#BBBBBB", linestyle="--", linewidth=1)
    solved = steps.twinx()
    solved.plot(bits, [entry["accuracy"] for entry in told["by_level"]], "s:", color="#D55E00")
    solved.set_ylim(0, 1.04)
    solved.set_ylabel("problems solved", color="#D55E00")
    save_svg(path, figure)
