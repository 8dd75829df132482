"""The paper's two tables: scores of all recipes (Table 1), and the ablation of PALBERT (Table 2)."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from benchmarks.glue.report.groups import Group, Groups, knob_chosen, ordered, task_order
from benchmarks.glue.report.page import Block, Heading, Table, Text
from benchmarks.glue.results import Result
from ponder import recipes

__all__ = ["NOT_AVERAGED", "ablation", "averaged", "is_ablation", "macro", "mark", "scores"]

_Key = TypeVar("_Key")
_SWITCHES = ("q_exit", "own_lambda_lr", "deep_lambda", "hidden_concat")
NOT_AVERAGED = ("WNLI",)  # as in the papers: its dev holds sentences of train with the other label
_Row = tuple[bool, bool, bool, bool] | str
_ROWS: tuple[tuple[str, _Row], ...] = (
    ("vanilla", "vanilla"),
    ("PonderNet", (False, False, False, False)),
    ("+ Q-exit", (True, False, False, False)),
    ("+ Q-exit, Lambda LR", (True, True, False, False)),
    ("+ Q-exit, Lambda LR, 3-layer Lambda", (True, True, True, False)),
    ("+ Q-exit, Lambda LR, hidden concat.", (True, True, False, True)),
    ("+ all four (PALBERT)", (True, True, True, True)),
)


def scores(groups: Groups) -> list[Block]:
    """Table 1: the median of the seeds, the macro average, and the speed-up in steps.

    The macro average and the speed-up of a recipe are means over the tasks that more than half of the recipes have,
    WNLI left out; a recipe that lacks one of these has none.
    """
    labels, tasks = ordered(name for name, _ in groups), task_order(task for _, task in groups)
    common = averaged(groups)
    scored = {key: group.score for key, group in groups.items()}
    columns = [[scored.get((name, task)) for name in labels] for task in tasks]
    columns.append([macro(scored, name, common) for name in labels])
    speed_ups = {key: group.speed_up("steps") for key, group in groups.items()}
    speeds = [macro(speed_ups, name, common) for name in labels]
    rows = [
        [_name(groups, name), "–" if speed is None else f"×{speed:.2f}", *cells, _seeds(groups, name)]
        for name, speed, *cells in zip(labels, speeds, *map(mark, columns), strict=True)
    ]
    over = f"over {', '.join(common)}" if common else "none, since no task is there for more than half of the recipes"
    note = (
        f"Median over the seeds of the score at the exits; the best is **bold**, the second <u>underlined</u>. "
        f"Macro average and speed-up in steps: {over}; a dash where a recipe lacks one of them."
    )
    if any(group.on_dev for group in groups.values()):
        note += " Of recipes with † hyper-parameters or epochs were selected on dev, the split that is shown."
    return [Heading("Scores", 3), Text(note), Table(["recipe", "×steps", *tasks, "macro", "seeds"], rows)]


def averaged(groups: Groups) -> list[str]:
    """The tasks of the macro average: those that more than half of the recipes have, WNLI left out."""
    labels = {name for name, _ in groups}
    tasks = task_order(task for _, task in groups if task not in NOT_AVERAGED)
    return [task for task in tasks if 2 * sum((name, task) in groups for name in labels) > len(labels)]


def ablation(groups: Groups) -> list[Block]:
    """Table 2: the mean ± the standard deviation (of a sample) over the seeds, as far as its rows were run."""
    found: dict[tuple[_Row, str], Group] = {}
    for (name, task), group in groups.items():
        row: _Row | None = "vanilla" if name == "vanilla" else _switches(group.example)
        if row is not None and (group.example["recipe"] != "palbert" or (row, task) not in found):
            found[row, task] = group
    tasks = task_order(group.task for group in groups.values() if is_ablation(group.example))
    if not tasks:
        return []
    rows = []
    for title, key in _ROWS:
        rows.append([title, *(_spread(found.get((key, task))) for task in tasks)])
    note = "Mean ± standard deviation over the seeds (no deviation where there is one seed)."
    return [Heading("Ablation", 3), Text(note), Table(["configuration", *tasks], rows)]


def is_ablation(result: Result) -> bool:
    """Whether a run is of a row of the ablation that is no recipe of its own: some of the switches are off."""
    row = _switches(result)
    return result["recipe"] == "palbert" and row is not None and not all(row)


def macro(values: Mapping[tuple[_Key, str], float], row: _Key, tasks: Sequence[str]) -> float | None:
    """The mean over tasks, or None where the row lacks one."""
    found = [values[row, task] for task in tasks if (row, task) in values]
    return statistics.fmean(found) if found and len(found) == len(tasks) else None


def mark(values: Sequence[float | None], competing: Sequence[bool] | None = None) -> list[str]:
    """A column with its best value bold and its second underlined, as they are printed: ties share a mark.

    Args:
        values: None where there is none.
        competing: Which of them can be marked; all where None.

    Example:
        >>> mark([56.61, 58.1, 56.58, None])
        ['<u>56.6</u>', '**58.1**', '<u>56.6</u>', '–']
    """
    printed = ["–" if value is None else f"{value:.1f}" for value in values]
    places = [True] * len(printed) if competing is None else competing
    ranks = sorted({float(text) for text, can in zip(printed, places, strict=True) if can and text != "–"})[::-1]
    if len(ranks) < 2:
        return printed
    form = {f"{ranks[0]:.1f}": "**{}**", f"{ranks[1]:.1f}": "<u>{}</u>"}
    return [form.get(text, "{}").format(text) if can else text for text, can in zip(printed, places, strict=True)]


def _switches(result: Result) -> tuple[bool, bool, bool, bool] | None:
    """PALBERT's four switches, where the run is PALBERT or PonderNet with the paper's other arguments."""
    options: Mapping[str, Any] = result["config"]["recipe_options"]
    if result["config"]["policy"] or knob_chosen(result):
        return None
    if result["recipe"] == "pondernet":
        return None if options else (False, False, False, False)
    if result["recipe"] != "palbert" or set(options) - set(_SWITCHES):
        return None
    defaults = inspect.signature(recipes.palbert).parameters
    q_exit, rate, deep, concat = (bool(options.get(name, defaults[name].default)) for name in _SWITCHES)
    return q_exit, rate, deep, concat


def _spread(group: Group | None) -> str:
    if group is None:
        return "–"
    mean = f"{statistics.fmean(group.scores):.1f}"
    return f"{mean} ± {statistics.stdev(group.scores):.1f}" if len(group.runs) > 1 else mean


def _name(groups: Groups, name: str) -> str:
    return f"{name} †" if any(group.on_dev for (other, _), group in groups.items() if other == name) else name


def _seeds(groups: Groups, name: str) -> str:
    counts = sorted({len(group.runs) for (other, _), group in groups.items() if other == name})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
