"""What the results say: rows over seeds, a Markdown page, and a figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import new_figure, save_svg
from benchmarks.tables import spread, write_between_marks
from ponder._utils.markdown import markdown_table

__all__ = ["COLUMNS", "Row", "draw_figure", "markdown", "rows", "write_page"]

COLUMNS = (
    "scene",
    "model",
    "halting",
    "validation",
    "test",
    "exit step",
    "steps per element: validation",
    "steps per element: test",
)
_COLORS = {"PonderNet": "#0072B2", "ACT": "#D55E00"}


@dataclass(frozen=True)
class Row:
    """One model with one way of halting in one scene, over seeds.

    Args:
        scene: Name of the scene.
        learner: Name of the model.
        way: How it halts.
        validation: What was measured on the validation set, one a seed.
        test: The same on the reported set.
    """

    scene: str
    learner: str
    way: str
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]

    def cells(self) -> tuple[str, ...]:
        """The row as text, under `COLUMNS`."""
        return (
            self.scene,
            self.learner,
            self.way,
            spread([one["accuracy"] for one in self.validation], "{:.1%}"),
            spread([one["accuracy"] for one in self.test], "{:.1%}"),
            spread([one["mean_exit_step"] for one in self.test], "{:.2f}"),
            spread([one["steps_per_element"] for one in self.validation], "{:+.3f}"),
            spread([one["steps_per_element"] for one in self.test], "{:+.3f}"),
        )

    def by_difficulty(self, key: str) -> dict[int, float]:
        """The mean over seeds of `key` on the validation and the reported difficulties, reported where both."""
        told = [
            {entry["difficulty"]: entry[key] for part in (validation, test) for entry in part["by_difficulty"]}
            for validation, test in zip(self.validation, self.test, strict=True)
        ]
        return {k: statistics.fmean(one[k] for one in told if k in one) for k in sorted(set().union(*told))}


def rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    """The rows of several seeds of one experiment."""
    groups: dict[tuple[str, str, str], Row] = {}
    for result in results:
        for run in result["runs"]:
            for way in run["test"]:
                key = (run["scene"], run["learner"], way)
                row = groups.setdefault(key, Row(*key, [], []))
                row.validation.append(run["validation"][way])
                row.test.append(run["test"][way])
    return list(groups.values())


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """A table of accuracy and exit steps; how both go with difficulty is what the figure shows."""
    config = results[0]["setting"]
    lines = [
        f"Setting `{config['name']}`, seeds {', '.join(str(result['seed']) for result in results)}; "
        f"mean ± sample standard deviation over seeds. "
        f"{config['examples']:,} vectors in each set; {_updates(results)} updates of each model.",
        "",
        *markdown_table(COLUMNS, (row.cells() for row in rows(results))),
    ]
    return "\n".join(lines) + "\n"


def write_page(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Write the tables into a page, between its two marks, and the figure into the folder `figures` beside it."""
    figure = Path("figures") / f"parity-{results[0]['setting']['name']}.svg"
    shown = f"![Accuracy and mean exit step over difficulty]({figure.as_posix()})"
    write_between_marks(path, f"{markdown(results)}\n{shown}")
    draw_figure(path.parent / figure, results)


def draw_figure(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Accuracy and mean exit step over difficulty, one column a scene, as an SVG file."""
    table, config = _own(rows(results)), results[0]["setting"]
    figure = new_figure(9.0, 5.5)
    grid = figure.subplots(2, len(config["scenes"]), squeeze=False, sharex="col", sharey="row")
    for column, scene in enumerate(config["scenes"]):
        for row in (row for row in table if row.scene == scene["name"]):
            for axes, key in zip(grid[:, column], ("accuracy", "mean_exit_step"), strict=True):
                points = row.by_difficulty(key)
                label = f"{row.learner} ({row.way})"
                axes.plot(list(points), list(points.values()), "o-", ms=4, color=_COLORS[row.learner], label=label)
        for axes in grid[:, column]:
            if scene["train"]["high"] < scene["test"]["low"]:
                axes.axvline(scene["train"]["high"] + 0.5, color="#595959", ls="--", lw=1, label="end of training")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(visible=True, color="#e6e6e6")
        grid[0, column].set_title(f"{scene['name']}, {scene['size']} elements")
        grid[0, column].axhline(0.5, color="#595959", ls=":", lw=1, label="chance")
        grid[1, column].set_xlabel("elements that are not zero")
    grid[0, 0].set(ylabel="accuracy", ylim=(0, 1.05))
    grid[1, 0].set(ylabel="mean exit step", ylim=(0, config["num_steps"] + 0.5))
    grid[0, -1].legend(loc="best", fontsize=8, edgecolor="none")
    save_svg(path, figure)


def _own(table: Sequence[Row]) -> list[Row]:
    """The first way of halting of each model in each scene, which is its own."""
    first: dict[tuple[str, str], Row] = {}
    for row in table:
        first.setdefault((row.scene, row.learner), row)
    return list(first.values())


def _updates(results: Sequence[dict[str, Any]]) -> str:
    """How many were made, which is fewer than asked for where the time was limited."""
    made = sorted({run["training"]["updates"] for result in results for run in result["runs"]})
    return f"{made[0]:,}" if len(made) == 1 else f"{made[0]:,} to {made[-1]:,}"
