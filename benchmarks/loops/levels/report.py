"""Tables and the figure of steps against difficulty, from results alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.figures import new_figure, save_svg
from benchmarks.files import read_seeds
from benchmarks.markdown import spread, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLUMNS", "COMMITTED", "draw_figure", "markdown", "results", "rows"]

FORMAT = "ponder-puzzles-1"
COMMITTED = Path(__file__).parents[2] / "results" / "levels"
COLUMNS = (
    "halting",
    "solved",
    "mean steps",
    "solved, largest level",
    "rank correlation",
)
_COLORS = {
    "converged": "#D55E00",
    "confidence": "#009E73",
    "converged and confident": "#56B4E9",
    "oracle": "#666666",
}
Results = Sequence[Mapping[str, Any]]


def results(folder: Path = COMMITTED) -> dict[str, Results]:
    """Return the results of a folder, by puzzle, each by seed."""
    return read_seeds(folder, FORMAT, lambda result: str(result["setting"]["puzzle"]))


def rows(found: Results) -> Iterator[tuple[str, ...]]:
    """Yield every way to stop, medians and ranges over the seeds, under `COLUMNS`."""
    chosen = [result["best_rule"] for result in found]
    for way in found[0]["ways"]:
        test = [result["ways"][way]["test"] for result in found]
        by = f" (chosen by {chosen.count(way)} of {len(chosen)})" if way in chosen else ""
        yield (
            way + by,
            spread([one["accuracy"] for one in test], "{:.1%}"),
            spread([one["mean_steps"] for one in test], "{:.1f}"),
            spread([one["by_level"][-1]["accuracy"] for one in test], "{:.1%}"),
            spread([one["rank_correlation"] for one in test], "{:.2f}"),
        )


def markdown(folder: Path = COMMITTED) -> str:
    """Return a table for each puzzle."""
    blocks = []
    for puzzle, found in results(folder).items():
        setting = found[0]["setting"]
        blocks.append(f"### {puzzle.capitalize()}")
        blocks.append(
            f"At most {setting['num_steps']} steps in training, and {setting['run_steps']} in the "
            "runs that are reported."
        )
        blocks.append(table(COLUMNS, rows(found)))
    return "\n\n".join(blocks)


def draw_figure(path: Path, everything: Mapping[str, Results]) -> None:
    """Draw, for each puzzle, accuracy against mean steps, and mean exit step against difficulty (medians)."""
    figure = new_figure(9, 3.2 * len(everything))
    axes = figure.subplots(len(everything), 2, squeeze=False)
    for (puzzle, found), (left, right) in zip(everything.items(), axes, strict=True):
        _draw_fixed_depths(left, found)
        for way in _COLORS:
            test = [result["ways"][way]["test"] for result in found if way in result["ways"]]
            if test:
                _draw_accuracy(left, way, test)
                _draw_difficulty(right, way, test)
        left.set(xlabel="mean steps", ylabel="problems solved", ylim=(-0.02, 1.04), title=puzzle)
        right.set(xlabel="difficulty", ylabel="mean exit step", ylim=(0, None))
        left.legend(fontsize="x-small", loc="lower right")
        right.legend(fontsize="x-small", loc="upper left")
    save_svg(path, figure)


def _draw_fixed_depths(axes: Axes, found: Results) -> None:
    """Draw the accuracy of every fixed number of steps."""
    curves = [result["by_step"]["test"]["all"] for result in found]
    depths = [statistics.median(of_seeds) for of_seeds in zip(*curves, strict=True)]
    axes.plot(range(1, len(depths) + 1), depths, color="#0072B2", label="every fixed depth")


def _draw_accuracy(axes: Axes, way: str, test: Results) -> None:
    """Draw one way to stop as a point: its mean steps and the share of problems that it solves."""
    mean_steps = statistics.median(one["mean_steps"] for one in test)
    accuracy = statistics.median(one["accuracy"] for one in test)
    marker = "*" if way == "oracle" else "o"
    axes.plot([mean_steps], [accuracy], marker, color=_COLORS[way], label=way)


def _draw_difficulty(axes: Axes, way: str, test: Results) -> None:
    """Draw the mean exit step of one way to stop at each level of difficulty."""
    levels = [entry["level"] for entry in test[0]["by_level"]]
    steps = []
    for place in range(len(levels)):
        steps.append(statistics.median(one["by_level"][place]["mean_steps"] for one in test))
    line = ":" if way == "oracle" else "-"
    axes.plot(levels, steps, line, marker=".", color=_COLORS[way], label=way)
