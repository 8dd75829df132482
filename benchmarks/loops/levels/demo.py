"""The two-minute version: prefix sums, and a plot that shows steps growing with difficulty."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import new_figure, save_svg
from benchmarks.loops.levels.measuring import problems_of, replayed
from benchmarks.loops.levels.solver import SETTINGS, solver, train
from benchmarks.loops.problems import PUZZLES
from ponder import policies

__all__ = ["demo", "draw"]


def demo(
    updates: int, advance: Callable[[], object] = lambda: None, examples: int = 200
) -> dict[str, Any]:
    """Train on up to 32 bits, stop once the answer has rested for two steps, and return how up to 64 bits went."""
    setting = replace(SETTINGS["prefix-sums"], updates=updates, examples=examples)
    torch.manual_seed(0)
    model = solver(setting)
    train(model, setting, 0, advance)
    rules = [policies.Converged(patience=2)]
    (score,), _, _ = replayed(model, problems_of(setting, "test"), setting.run_steps, rules)
    return score.to_dict()


def draw(path: Path, found: Mapping[str, Any]) -> None:
    """Draw mean exit step and share of problems solved, by the number of bits."""
    figure = new_figure(6, 3.4)
    steps = figure.subplots()
    bits = [entry["level"] for entry in found["by_level"]]
    steps.plot(bits, [entry["mean_steps"] for entry in found["by_level"]], "o-", color="#0072B2")
    steps.set(xlabel="bits (trained up to the dashed line)", ylim=(0, None))
    steps.set_ylabel("mean exit step", color="#0072B2")
    steps.axvline(max(PUZZLES["prefix-sums"].trained), color="#BBBBBB", linestyle="--", linewidth=1)
    solved = steps.twinx()
    solved.plot(bits, [entry["accuracy"] for entry in found["by_level"]], "s:", color="#D55E00")
    solved.set_ylim(0, 1.04)
    solved.set_ylabel("problems solved", color="#D55E00")
    save_svg(path, figure)
