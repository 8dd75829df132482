"""Significance between recipes: differences on dev, and which of them are more than luck."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import tasks as registry
from benchmarks.glue.report.groups import Group, Groups, ordered, task_order
from benchmarks.glue.report.notes import NOTES
from benchmarks.glue.report.tables import averaged
from benchmarks.glue.significance import Comparison, Replicates, compare, holm, replicate, unpack
from benchmarks.tasks import Task
from ponder.errors import ArgumentError, DataError
from ponder.pages import Block, Heading, Table, Text

__all__ = ["comparisons"]

_LEVEL = 0.05


def comparisons(groups: Groups, folders: Mapping[str, Path | None], replicates: int) -> list[Block]:
    """A matrix for each task, and one for the macro average of the recipes that have all its tasks."""
    heading = Heading("Significance", 3)
    kept = {
        key: group
        for key, group in groups.items()
        if all("predictions" in split for run in group.runs for split in run.reported)
    }
    if not kept:
        return [heading, Text("Not made: these runs were recorded without their predictions.")]
    kept_with_data = {key: group for key, group in kept.items() if folders.get(_option(key[1])) is not None}
    if not kept_with_data:
        missing = f"Give the data: `report {_option(next(iter(kept))[1])} FOLDER`."
        return [heading, Text(f"Not made: results hold predictions but no labels. {missing}")]
    drawn = {}
    for (name, task_name), group in kept_with_data.items():
        task = registry.get(task_name)
        drawn[name, task_name] = _replicates(task, group, _labels(task, folders[task.folder_option]), replicates)
    labels, tasks = ordered(name for name, _ in drawn), task_order(task for _, task in drawn)
    left_out = [f"{name} on {task}" for name, task in groups if (name, task) not in kept]
    note = NOTES["significance"].format(replicates=replicates, level=_LEVEL)
    note += f" Left out, since no predictions were kept: {', '.join(left_out)}." if left_out else ""
    blocks: list[Block] = [heading, Text(note)]
    for task_name in tasks:
        of_task = {name: [drawn[name, task_name]] for name in labels if (name, task_name) in drawn}
        blocks += _matrix(task_name, of_task)
    common = averaged(groups)
    if len(common) > 1:
        whole = [name for name in labels if all((name, task) in drawn for task in common)]
        title = f"macro over {', '.join(common)}"
        blocks += _matrix(title, {name: [drawn[name, task] for task in common] for name in whole})
    return blocks


def _option(task: str) -> str:
    return registry.get(task).folder_option


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
    found = {
        (one, other): compare(list(zip(recipes[one], recipes[other], strict=True)))
        for one, other in itertools.combinations(names, 2)
    }
    known = {pair: result for pair, result in found.items() if result is not None}
    adjusted = dict(zip(known, holm([result.p for result in known.values()]), strict=True))
    cells = {pair: _cell(result, adjusted[pair] < _LEVEL) for pair, result in known.items()}
    rows = [[name, *(cells.get((other, name), "") for other in names[:-1])] for name in names[1:]]
    return [Text(f"*{title}*"), Table(["row − column", *names[:-1]], rows)]


def _cell(result: Comparison, significant: bool) -> str:
    """Of the column minus the row, turned round."""
    text, low, high = (f"{0.0 - 100 * value:+.1f}" for value in (result.difference, result.high, result.low))
    text = f"**{text}** [{low}, {high}]" if significant else f"{text} [{low}, {high}]"
    return f"{text} ¹" if result.seeds == 1 else text
