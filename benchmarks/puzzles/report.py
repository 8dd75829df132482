"""Tables and the figure of puzzles, from results alone: those of this version, and of puzzles that are run no more."""

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
COMMITTED = Path(__file__).parents[1] / "results" / "puzzles"
COLUMNS = (
    "network",
    "halting",
    "solved",
    "mean steps",
    "solved, largest level",
    "rank correlation",
)
_SHOWN = ("looped", "pondernet", "act", "feed-forward")
_COLORS = {
    "converged": "#D55E00",
    "confidence": "#009E73",
    "converged and confident": "#56B4E9",
    "oracle": "#666666",
}
Results = Mapping[str, Sequence[Mapping[str, Any]]]


def results(folder: Path = COMMITTED) -> dict[str, Results]:
    """Return the results of a folder, by puzzle and learner, each by seed."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for path in sorted(folder.glob("*-s*.json")):
        result = read_json(path)
        if result.get("format") != FORMAT or not is_intact(result):
            raise DataError(
                f"{path}: expected a result as it was written, of the format {FORMAT!r}."
            )
        found.setdefault(result["setting"]["puzzle"], {}).setdefault(result["learner"], []).append(
            result
        )
    return {
        puzzle: dict(sorted(of.items(), key=lambda each: each[0] != "looped"))
        for puzzle, of in found.items()
    }


def rows(of_puzzle: Results) -> Iterator[tuple[str, ...]]:
    """Yield every network with every way to stop, medians and ranges over the seeds, under `COLUMNS`."""
    for learner in (name for name in _SHOWN if name in of_puzzle):
        found = of_puzzle[learner]
        chosen = [result.get("best_rule") for result in found]
        for way in dict.fromkeys(way for result in found for way in result["ways"]):
            test = [result["ways"][way]["test"] for result in found if way in result["ways"]]
            yield (
                learner,
                way
                + (f" (chosen by {chosen.count(way)} of {len(chosen)})" if way in chosen else ""),
                spread([one["accuracy"] for one in test], "{:.1%}"),
                spread([one["mean_steps"] for one in test], "{:.1f}"),
                spread([one["by_level"][-1]["accuracy"] for one in test], "{:.1%}"),
                spread([one["rank_correlation"] for one in test], "{:.2f}"),
            )


def markdown(folder: Path = COMMITTED) -> str:
    """Return a table for each puzzle, and a line for each stream."""
    blocks = []
    for puzzle, found in results(folder).items():
        setting = next(iter(found.values()))[0]["setting"]
        blocks += [f"### {puzzle.capitalize()}", f"At most {setting['num_steps']} steps in training, and "
                   f"{setting['run_steps']} in the runs that are reported."]  # fmt: skip
        blocks.append(table(COLUMNS, rows(found)))
        blocks += [
            f"A stream of {one['problems']:,} problems of all levels saves {one['steps_saved']:.1%} of "
            f"the steps of a fixed depth of {one['depth']}, {one['time_saved']:.1%} of its seconds and "
            f"{one['cpu_time_saved']:.1%} of the processor's."
            for one in found.get("stream", ())
        ]
    return "\n\n".join(blocks)


def draw_figure(path: Path, everything: Mapping[str, Results]) -> None:
    """Draw, for each puzzle, accuracy against mean steps, and mean exit step against difficulty (medians)."""
    shown = {puzzle: found["looped"] for puzzle, found in everything.items() if "looped" in found}
    figure = new_figure(9, 3.2 * len(shown))
    axes = figure.subplots(len(shown), 2, squeeze=False)
    for (puzzle, looped), (left, right) in zip(shown.items(), axes, strict=True):
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
