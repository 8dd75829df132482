"""Tables of significance: every recipe against every other, on each task and on the macro average."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks import metrics
from benchmarks import tasks as registry
from benchmarks.glue.report.groups import Group, Groups, averaged, ordered, task_order
from benchmarks.significance import Replicates, compare, holm, replicate
from benchmarks.tasks import Task
from ponder.errors import DataError
from ponder.pages import Block, Heading, Table, Text

__all__ = ["comparisons"]

_LEVEL = 0.05
_NOTE = (
    "Row minus column, in points: means over the common seeds. Paired bootstrap over dev examples and seeds, "
    f"{{:,}} replicates; in brackets the 95% interval. **Bold**: p < {_LEVEL} after Holm's adjustment over the table. "
    "¹ One seed in common (of a macro: on one of its tasks at least): the interval is over examples alone, and says "
    "nothing about other seeds. With two or three seeds it is still too narrow in that."
)


def comparisons(groups: Groups, folders: Mapping[str, Path | None], replicates: int) -> list[Block]:
    """A matrix for each task, and one for the macro average of the recipes that have all its tasks."""
    drawn, left_out = {}, []
    for (name, task_name), group in groups.items():
        task = registry.get(task_name)
        if not all("predictions" in split for run in group.runs for split in run.reported):
            left_out.append(f"{name} on {task_name} (no predictions were kept)")
        elif (folder := folders.get(task.folder_option)) is None:
            left_out.append(f"{name} on {task_name} (no labels: give {task.folder_option})")
        else:
            splits = task.load(folder, task.dev_splits)
            labels = {split: np.asarray(splits[split]["label"]) for split in task.dev_splits}
            drawn[name, task_name] = _replicates(task, group, labels, replicates)
    if not drawn:
        missing = "it needs the labels of dev (`report --glue-dir FOLDER`), and predictions, which old runs lack"
        return [Heading("Significance", 3), Text(f"Not made: {missing}.")]
    note = _NOTE.format(replicates) + (f" Left out: {', '.join(left_out)}." if left_out else "")
    names, common = ordered(name for name, _ in drawn), averaged(groups)
    matrices = [_matrix([task], names, drawn) for task in task_order(task for _, task in drawn)]
    matrices += [_matrix(common, names, drawn)] if len(common) > 1 else []
    return [Heading("Significance", 3), Text(note), *itertools.chain(*matrices)]


def _replicates(task: Task, group: Group, labels: Mapping[str, np.ndarray], count: int) -> Replicates:
    runs = {
        run["config"]["seed"]: {s: metrics.unpack(task, run["splits"][s]["predictions"]) for s in labels}
        for run in group.runs
    }
    fits = all(len(given) == len(labels[split]) for run in runs.values() for split, given in run.items())
    made = replicate(task, runs, labels, count) if fits else None
    said = [run.score("exits") for run in group.runs]
    if made is None or not np.allclose(made.scores, said, atol=1e-3):
        got = "another number of examples" if made is None else f"with these labels {made.scores.round(4).tolist()}"
        raise DataError(
            f"{task.name}, {group.label}: expected the dev split on which the runs scored "
            f"{np.round(said, 4).tolist()}; got {got}. Pass the folder of data that they were made with."
        )
    return made


def _matrix(tasks: Sequence[str], names: Sequence[str], drawn: Mapping[tuple[str, str], Replicates]) -> list[Block]:
    shown = [name for name in names if all((name, task) in drawn for task in tasks)]
    if len(shown) < 2:
        return []
    found = {
        (column, row): compare([(drawn[row, task], drawn[column, task]) for task in tasks])
        for column, row in itertools.combinations(shown, 2)
    }
    known = {pair: result for pair, result in found.items() if result is not None}
    cells = {}
    for (pair, result), p in zip(known.items(), holm([result.p for result in known.values()]), strict=True):
        difference, low, high = (f"{100 * value:+.1f}" for value in (result.difference, result.low, result.high))
        text = f"**{difference}**" if p < _LEVEL else difference
        cells[pair] = f"{text} [{low}, {high}]" + " ¹" * (result.seeds == 1)
    rows = [[name, *(cells.get((other, name), "") for other in shown[:-1])] for name in shown[1:]]
    title = tasks[0] if len(tasks) == 1 else f"macro over {', '.join(tasks)}"
    return [Text(f"*{title}*"), Table(["row − column", *shown[:-1]], rows)]
