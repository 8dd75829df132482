"""Figures 2, 3 and 4 of PALBERT's paper, drawn from the runs of the suite `pays` on MiniLM.

Figure 2 is the mean of the halting distribution, Figure 3 the score against the threshold q of the Q-exit, and
Figure 4 the score against the speed-up, of PALBERT by q and of PABEE by its patience.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.glue.report.summary import SUITES
from benchmarks.glue.results import Result, read_all
from benchmarks.glue.sweep import suite_named

__all__ = ["exits_of_palbert", "palbert_beside_pabee"]

_BACKBONE = "minilm"
_COLORS = {"CoLA": "#D55E00", "SST-2": "#0072B2", "MRPC": "#009E73", "Banking77": "#CC79A7"}
_GREY = "#666666"


def exits_of_palbert(figure: Any, results: Path) -> None:
    """Left: where PALBERT's halting distribution has its mass. Right: its score against q."""
    left, right = figure.subplots(1, 2)
    runs = _runs(results)
    for task, color in _COLORS.items():
        of_task = [run for run in runs if _is(run, "palbert", task)]
        _draw_masses(left, of_task, color=color, label=task)
        _draw_thresholds(right, of_task, color=color, label=task)
    left.set(xlabel="step n", ylabel="mean of p(n | x) on dev", title="Figure 2: the mass")
    left.set_ylim(bottom=0)
    left.legend()
    right.axvline(0.5, color=_GREY, linestyle="--", linewidth=0.8)
    right.set(xlabel="threshold q of the Q-exit", ylabel="score on dev", title="Figure 3: q")


def palbert_beside_pabee(figure: Any, results: Path) -> None:
    """Score against speed-up on CoLA and SST-2: PALBERT by q, PABEE by its patience."""
    runs = _runs(results)
    for axes, task in zip(figure.subplots(1, 2), ("CoLA", "SST-2"), strict=True):
        for recipe, policy, color in (
            ("palbert", "quantile", "#D55E00"),
            ("pabee", "patience", "#CC79A7"),
        ):
            label = f"{recipe}, by {policy}"
            for run in (each for each in runs if _is(each, recipe, task)):
                points = _curve(run, policy)
                speed_up = run["num_steps"] / np.asarray(points["mean_exit_step"])
                scores = 100 * np.asarray(points["score"])
                axes.plot(speed_up, scores, marker="o", markersize=3, color=color, label=label)
                label = "_"  # one entry of the legend for all seeds
        plain = [100 * run.score("exits") for run in runs if _is(run, "vanilla", task)]
        axes.axhline(float(np.mean(plain)), color=_GREY, linestyle="--", label="plain fine-tuning")
        axes.set(xlabel="speed-up in steps", title=f"Figure 4: {task}", xlim=(0.9, 3.2))
        axes.xaxis.set_major_formatter("×{x:.1f}")
    figure.axes[0].set(ylabel="score on dev")
    figure.axes[0].legend(loc="lower left")


def _runs(results: Path) -> list[Result]:
    suite = suite_named(SUITES[_BACKBONE])
    return [run for run in read_all(results) if run["backbone"] == _BACKBONE and suite.has(run)]


def _is(run: Result, recipe: str, task: str) -> bool:
    return bool(run["recipe"] == recipe and run["task"] == task)


def _draw_masses(axes: Any, runs: Sequence[Result], **style: Any) -> None:
    masses = np.array([run.reported[0]["halting"] for run in runs])
    axes.plot(np.arange(1, masses.shape[1] + 1), masses.mean(axis=0), marker="o", **style)


def _draw_thresholds(axes: Any, runs: Sequence[Result], **style: Any) -> None:
    """Draw the mean over seeds, and one standard deviation around it."""
    curves = [_curve(run, "quantile") for run in runs]
    # A file leaves out a threshold at which nothing changes, so a curve is a staircase of its own.
    thresholds = np.unique(np.concatenate([curve["knob"] for curve in curves]))
    scores = 100 * np.array([_at(curve, thresholds) for curve in curves])
    middle = scores.mean(axis=0)
    deviation = scores.std(axis=0, ddof=1)
    axes.plot(thresholds, middle, **style)
    axes.fill_between(
        thresholds, middle - deviation, middle + deviation, alpha=0.15, color=style["color"]
    )


def _at(curve: dict[str, list[float]], thresholds: Any) -> Any:
    """Return the score of a curve at each threshold: that of the last point which is not above it."""
    last = np.searchsorted(curve["knob"], thresholds, side="right") - 1
    return np.asarray(curve["score"])[np.maximum(last, 0)]


def _curve(run: Result, policy: str) -> dict[str, list[float]]:
    curves = run.reported[0]["curves"]
    points: dict[str, list[float]] = next(
        curve["points"] for curve in curves if curve["policy"] == policy
    )
    return points
