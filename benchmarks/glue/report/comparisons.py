"""Significance between recipes: differences on dev, and which of them are more than luck."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.glue import data as glue_data
from benchmarks.glue import tasks as glue_tasks
from benchmarks.glue.report.groups import Group, Groups, ordered, task_order
from benchmarks.glue.report.page import Block, Heading, Table, Text
from benchmarks.glue.report.scores import averaged
from benchmarks.glue.significance import Comparison, Replicates, compare, holm, replicate, unpack
from ponder.errors import ArgumentError, DataError

__all__ = ["comparisons"]

_LEVEL = 0.05


def comparisons(groups: Groups, glue_dir: Path | None, replicates: int) -> list[Block]:
    """A matrix for each task, and one for the macro average of the recipes that have all its tasks.

    Args:
        groups: What is shown.
        glue_dir: Where the labels of dev are: results hold none.
        replicates: Of the bootstrap.
    """
    kept = {key: group for key, group in groups.items() if _has_predictions(group)}
    heading = Heading("Significance", 3)
    if not kept:
        return [heading, Text("Not made: these runs were recorded without their predictions.")]
    if glue_dir is None:
        missing = "Not made: results hold predictions but no labels. Give the data: `report --glue-dir FOLDER`."
        return [heading, Text(missing)]
    drawn = _replicates(kept, glue_dir, replicates)
    labels = ordered(name for name, _ in drawn)
    tasks = task_order(task for _, task in drawn)
    left_out = [f"{name} on {task}" for name, task in groups if (name, task) not in kept]
    without = f" Left out, since no predictions were kept: {', '.join(left_out)}." if left_out else ""
    blocks: list[Block] = [heading, Text(_note(replicates) + without)]
    for task in tasks:
        of_task = {name: [drawn[name, task]] for name in labels if (name, task) in drawn}
        blocks += _matrix(task, of_task)
    common = averaged(groups)
    if len(common) > 1:
        whole = [name for name in labels if all((name, task) in drawn for task in common)]
        blocks += _matrix(
            f"macro over {', '.join(common)}", {name: [drawn[name, task] for task in common] for name in whole}
        )
    return blocks


def _note(replicates: int) -> str:
    return (
        f"Row minus column, in points: means over the common seeds. Paired bootstrap over dev examples and seeds, "
        f"{replicates:,} replicates; in brackets the 95% interval. **Bold**: p < {_LEVEL} after Holm's adjustment over "
        "the table. ¹ One seed in common (of a macro: on one of its tasks at least): the interval is over examples "
        "alone, and says nothing about other seeds. With two or three seeds it is still too narrow in that."
    )


def _has_predictions(group: Group) -> bool:
    return all("predictions" in split for run in group.runs for split in run.reported)


def _replicates(kept: Groups, glue_dir: Path, count: int) -> dict[tuple[str, str], Replicates]:
    labels: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    drawn = {}
    for (name, task_name), group in kept.items():
        task = glue_tasks.get(task_name)
        if task_name not in labels:
            labels[task_name] = _labels(task, glue_dir)
        runs = {
            run["config"]["seed"]: {
                split: unpack(task, run["splits"][split]["predictions"]) for split in labels[task_name]
            }
            for run in group.runs
        }
        try:
            made = replicate(task, runs, labels[task_name], count)
        except ArgumentError as error:
            raise DataError(f"{task_name}, {name}: {error}") from error
        reported = [run.score("exits") for run in group.runs]
        if not np.allclose(made.scores, reported, atol=1e-3):
            raise DataError(
                f"{task_name}, {name}: expected the dev split that the runs were scored on; with these labels their "
                f"predictions score {made.scores.round(4).tolist()}, and they said {np.round(reported, 4).tolist()}. "
                "Pass the folder of data that they were made with."
            )
        drawn[name, task_name] = made
    return drawn


def _labels(task: glue_tasks.GlueTask, glue_dir: Path) -> dict[str, np.ndarray[Any, Any]]:
    splits = glue_data.load(task, glue_dir, task.dev_splits)
    return {name: np.asarray(splits[name]["label"]) for name in task.dev_splits}


def _matrix(title: str, recipes: Mapping[str, list[Replicates]]) -> list[Block]:
    names = list(recipes)
    if len(names) < 2:
        return []
    pairs = list(itertools.combinations(names, 2))
    found = {(a, b): compare(list(zip(recipes[a], recipes[b], strict=True))) for a, b in pairs}
    known = {pair: result for pair, result in found.items() if result is not None}
    adjusted = dict(zip(known, holm([result.p for result in known.values()]), strict=True))
    rows = []
    for name in names[1:]:
        cells = []
        for other in names[:-1]:
            result = known.get((other, name)) if names.index(other) < names.index(name) else None
            cells.append("" if result is None else _cell(result, adjusted[other, name] < _LEVEL))
        rows.append([name, *cells])
    return [Text(f"*{title}*"), Table(["row − column", *names[:-1]], rows)]


def _cell(result: Comparison, significant: bool) -> str:
    """Of the column minus the row, turned round."""
    text, low, high = (f"{0.0 - 100 * value:+.1f}" for value in (result.difference, result.high, result.low))
    text = f"**{text}** [{low}, {high}]" if significant else f"{text} [{low}, {high}]"
    return f"{text} ¹" if result.seeds == 1 else text
