"""Tables and the figure of steps against difficulty, from results alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import new_figure, save_svg
from benchmarks.files import DataError, is_intact, read_json
from benchmarks.markdown import spread, table

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
    found: dict[str, Results] = {}
    for path in sorted(folder.glob("*-s*.json")):
        result = read_json(path)
        if result.get("format") != FORMAT or not is_intact(result):
            raise DataError(
                f"{path}: expected a result as it was written, of the format {FORMAT!r}."
            )
        puzzle = result["setting"]["puzzle"]
        found[puzzle] = [*found.get(puzzle, ()), result]
    return found


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
        blocks += [f"### {puzzle.capitalize()}", f"At most {setting['num_steps']} steps in training, and "
                   f"{setting['run_steps']} in the runs that are reported."]  # fmt: skip
        blocks.append(table(COLUMNS, rows(found)))
    return "\n\n".join(blocks)


def draw_figure(path: Path, everything: Mapping[str, Results]) -> None:
    """Draw, for each puzzle, accuracy against mean steps, and mean exit step against difficulty (medians)."""
    figure = new_figure(9, 3.2 * len(everything))
    axes = figure.subplots(len(everything), 2, squeeze=False)
    for (puzzle, looped), (left, right) in zip(everything.items(), axes, strict=True):
        curves = [result["by_step"]["test"]["all"] for result in looped]
        depths = [statistics.median(at_step) for at_step in zip(*curves, strict=True)]
        left.plot(range(1, len(depths) + 1), depths, color="#0072B2", label="every fixed depth")
        for way, color in _COLORS.items():
            test = [result["ways"][way]["test"] for result in looped if way in result["ways"]]
            if test:
                at = [
                    statistics.median(one[key] for one in test)
                    for key in ("mean_steps", "accuracy")
                ]
                left.plot(
                    *[[value] for value in at],
                    "*" if way == "oracle" else "o",
                    color=color,
                    label=way,
                )
                levels = [entry["level"] for entry in test[0]["by_level"]]
                steps = [
                    statistics.median(one["by_level"][place]["mean_steps"] for one in test)
                    for place in range(len(levels))
                ]
                right.plot(
                    levels,
                    steps,
                    ":" if way == "oracle" else "-",
                    marker=".",
                    color=color,
                    label=way,
                )
        left.set(xlabel="mean steps", ylabel="problems solved", ylim=(-0.02, 1.04), title=puzzle)
        right.set(xlabel="difficulty", ylabel="mean exit step", ylim=(0, None))
        left.legend(fontsize="x-small", loc="lower right")
        right.legend(fontsize="x-small", loc="upper left")
    save_svg(path, figure)
