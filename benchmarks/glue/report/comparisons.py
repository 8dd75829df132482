"""Significance between recipes: differences on dev, and which of them are more than luck."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import tasks as registry
from benchmarks.glue.report.groups import Group, Groups, ordered, task_order
from benchmarks.glue.report.tables import averaged
from benchmarks.glue.significance import Replicates, compare, holm, replicate, unpack
from benchmarks.page import Block, Heading, Table, Text
from benchmarks.tasks import Task
from ponder.errors import ArgumentError, DataError

__all__ = ["comparisons"]

_LEVEL = 0.05
_NOTE = (
    "Row minus column, in points: means over the common seeds. Paired bootstrap over dev examples and seeds, "
    f"{{replicates:,}} replicates; in brackets the 95% interval. **Bold**: p < {_LEVEL} after Holm's adjustment over the "
    "table. ¹ One seed in common (of a macro: on one of its tasks at least): the interval is over examples alone, and "
    "says nothing about other seeds. With two or three seeds it is still too narrow in that."
)


def comparisons(groups: Groups, folders: Mapping[str, Path | None], replicates: int) -> list[Block]:
    """A matrix for each task, and one for the macro average of the recipes that have all its tasks."""
    heading = Heading("Significance", 3)
    drawn, left_out = {}, []
    for (name, task_name), group in groups.items():
        task = registry.get(task_name)
        if not all("predictions" in split for run in group.runs for split in run.reported):
            left_out.append(f"{name} on {task_name} (no predictions were kept)")
        elif folders.get(task.folder_option) is None:
            left_out.append(f"{name} on {task_name} (no labels: give {task.folder_option})")
        else:
            labels = _labels(task, folders[task.folder_option])
            drawn[name, task_name] = _replicates(task, group, labels, replicates)
    if not drawn:
        return [heading, Text("Not made: it needs the labels of dev. Give the data: `report --glue-dir FOLDER`.")]
    note = _NOTE.format(replicates=replicates) + (f" Left out: {', '.join(left_out)}." if left_out else "")
    blocks: list[Block] = [heading, Text(note)]
    names, tasks = ordered(name for name, _ in drawn), task_order(task for _, task in drawn)
    for task_name in tasks:
        blocks += _matrix(task_name, {n: [drawn[n, task_name]] for n in names if (n, task_name) in drawn})
    common = averaged(groups)
    if len(common) > 1:
        whole = [name for name in names if all((name, task) in drawn for task in common)]
        title = f"macro over {', '.join(common)}"
        blocks += _matrix(title, {name: [drawn[name, task] for task in common] for name in whole})
    return blocks


def _labels(task: Task, folder: Path | None) -> dict[str, np.ndarray[Any, Any]]:
    splits = task.load(folder, task.dev_splits)
    return {name: np.asarray(splits[name]["label"]) for name in task.dev_splits}


def _replicates(task: Task, group: Group, labels: Mapping[str, np.ndarray[Any, Any]], count: int) -> Replicates:
    runs = {
        run["config"]["seed"]: {split: unpack(task, run["splits"][split]["predictions"]) for split in labels}
        for run in group.runs
    }
    where = f"{task.name}, {group.label}"
    try:
        made = replicate(task, runs, labels, count)
    except ArgumentError as error:
        raise DataError(f"{where}: {error}") from error
    reported = [run.score("exits") for run in group.runs]
    if not np.allclose(made.scores, reported, atol=1e-3):
        raise DataError(
            f"{where}: expected the dev split that the runs were scored on; with these labels their predictions score "
            f"{made.scores.round(4).tolist()}, and they said {np.round(reported, 4).tolist()}. Pass the folder of data "
            "that they were made with."
        )
    return made


def _matrix(title: str, recipes: Mapping[str, list[Replicates]]) -> list[Block]:
    names = list(recipes)
    if len(names) < 2:
        return []
    pairs = itertools.combinations(names, 2)
    found = {(one, row): compare(list(zip(recipes[row], recipes[one], strict=True))) for one, row in pairs}
    known = {pair: result for pair, result in found.items() if result is not None}
    cells = {}
    for (pair, result), p in zip(known.items(), holm([result.p for result in known.values()]), strict=True):
        difference, low, high = (f"{100 * value:+.1f}" for value in (result.difference, result.low, result.high))
        text = f"**{difference}**" if p < _LEVEL else difference
        cells[pair] = f"{text} [{low}, {high}]" + " ¹" * (result.seeds == 1)
    rows = [[name, *(cells.get((other, name), "") for other in names[:-1])] for name in names[1:]]
    return [Text(f"*{title}*"), Table(["row − column", *names[:-1]], rows)]
