"""What the results of a puzzle come to: one number for each question, the mean over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.puzzles.config import PUZZLES
from benchmarks.puzzles.experiment import read_results
from ponder.errors import DataError

__all__ = ["GOALS", "Results", "summarise", "summarise_all"]

_SOLVED, _SHARE, _ORACLE, _CORRELATION, _CLOCK = 0.95, 0.60, 1.35, 0.8, 0.95
GOALS = {
    "as_accurate_as_the_best_fixed_depth": "no less than at the best fixed depth",
    "at_60_percent_of_its_steps": f"≤ {_SHARE:.0%}",
    "at_1.35_times_the_oracles_steps": f"≤ {_ORACLE}",
    "more_accurate_than_running_on": "less, where it overthinks",
    "steps_rise_with_difficulty": f"≥ {_CORRELATION}",
    "larger_ones_solved": f"≥ {_SOLVED:.0%}",
    "stream_saves_what_steps_do": f"≥ {_CLOCK}",
}
"""The goals, by name, each with what it asks for."""
Results = Mapping[str, Sequence[Mapping[str, Any]]]


def summarise_all(out: Path) -> dict[str, Any]:
    """The summaries of all puzzles that have results of the looped solver in a folder, by name.

    Raises:
        DataError: None has.
    """
    found = [puzzle for puzzle in PUZZLES if any(out.glob(f"{puzzle}-looped-s*.json"))]
    if not found:
        raise DataError(
            f"{out}: no results of the looped solver, *-looped-s*.json, which the others are held against. "
            f"Run `python -m benchmarks.puzzles run mazes`, say, first."
        )
    return {puzzle: summarise(puzzle, read_results(out, puzzle)) for puzzle in found}


def summarise(puzzle: str, results: Results) -> dict[str, Any]:
    """The summary of one puzzle: of the rule chosen on validation, on the problems that chose nothing."""
    looped = results["looped"]

    def mean(read: Callable[[Mapping[str, Any]], float]) -> float:
        return round(statistics.fmean(read(result) for result in looped), 6)

    larger = PUZZLES[puzzle].larger_level
    told = {
        "seeds": [result["seed"] for result in looped],
        "best_rules": [result["best_rule"] for result in looped],
        "accuracy": mean(lambda result: best_way(result)["accuracy"]),
        "mean_steps": mean(lambda result: best_way(result)["mean_steps"]),
        "best_fixed_accuracy": mean(lambda result: _way(result, "best fixed depth")["accuracy"]),
        "best_fixed_steps": mean(lambda result: _way(result, "best fixed depth")["mean_steps"]),
        "last_step_accuracy": mean(lambda result: _way(result, "last step")["accuracy"]),
        "oracle_steps": mean(lambda result: _way(result, "oracle")["mean_steps"]),
        "rank_correlation": mean(lambda result: best_way(result)["rank_correlation"]),
        "larger_accuracy": None if larger is None else mean(lambda result: _at_level(best_way(result), larger)),
        "feed_forward_accuracy": _feed_forward(results),
        "training_seconds": _training_seconds(results),
    }
    return {**told, **_streams(results.get("stream", ())), "goals": {**_goals(told), **_stream_goal(results)}}


def best_way(result: Mapping[str, Any], split: str = "test") -> Mapping[str, Any]:
    """What the rule that validation chose does on a split."""
    return _way(result, result["best_rule"], split)


def _goals(told: Mapping[str, Any]) -> dict[str, bool | None]:
    """Which of the goals the means over seeds reach; None where a goal does not apply."""
    larger = told["larger_accuracy"]
    overthinks = told["last_step_accuracy"] < told["best_fixed_accuracy"]
    return {
        "as_accurate_as_the_best_fixed_depth": told["accuracy"] >= told["best_fixed_accuracy"] - 1e-9,
        "at_60_percent_of_its_steps": told["mean_steps"] <= _SHARE * told["best_fixed_steps"],
        "at_1.35_times_the_oracles_steps": told["mean_steps"] <= _ORACLE * told["oracle_steps"],
        "more_accurate_than_running_on": told["accuracy"] > told["last_step_accuracy"] if overthinks else None,
        "steps_rise_with_difficulty": told["rank_correlation"] >= _CORRELATION,
        "larger_ones_solved": None if larger is None else larger >= _SOLVED,
    }


def _streams(streams: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What streams save, the mean over seeds; None where none was timed."""
    keys = ("steps_saved", "time_saved", "cpu_time_saved")
    told = {key: round(statistics.fmean(one[key] for one in streams), 6) if streams else None for key in keys}
    return {f"stream_{key}": value for key, value in told.items()}


def _stream_goal(results: Results) -> dict[str, bool | None]:
    """Whether streams save time as they save steps, by the clock and by the processor's time, with the same answers."""
    streams = results.get("stream", ())
    kept = [min(one["time_saved"], one["cpu_time_saved"]) >= _CLOCK * one["steps_saved"] for one in streams]
    equal = [one["answers_equal"] == one["problems"] for one in streams]
    return {"stream_saves_what_steps_do": all(kept + equal) if streams else None}


def _feed_forward(results: Results) -> float | None:
    measured = results.get("feed-forward")
    if not measured:
        return None
    return round(statistics.fmean(_way(result, "all layers")["accuracy"] for result in measured), 6)


def _training_seconds(results: Results) -> dict[str, float]:
    """What it took to train each network from one seed, in seconds of one core; the mean over seeds."""
    return {
        learner: round(statistics.fmean(result["training"]["seconds"] for result in of_learner), 1)
        for learner, of_learner in results.items()
        if learner != "stream"
    }


def _way(result: Mapping[str, Any], name: str, split: str = "test") -> Mapping[str, Any]:
    way: Mapping[str, Any] = result["ways"][name][split]
    return way


def _at_level(way: Mapping[str, Any], level: int) -> float:
    return next(float(entry["accuracy"]) for entry in way["by_level"] if entry["level"] == level)
