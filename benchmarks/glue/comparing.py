"""Two recipes on the same fine-tuned models: the gap of every task, with an interval of a paired bootstrap."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import tasks
from benchmarks.environment import environment
from benchmarks.files import write_json
from benchmarks.glue.bootstrap import Replayed, paired_bootstrap
from benchmarks.glue.results import Result
from ponder.errors import PonderError

__all__ = ["compare_recipes"]

_Cell = tuple[str, str]
"""A backbone and a task."""


def compare_recipes(
    ours: Sequence[Result],
    theirs: Sequence[Result],
    folders: Mapping[str, Path | None],
    path: Path,
) -> Path:
    """Compare runs in pairs of one backbone, task and fine-tuned model, and write the intervals.

    Args:
        ours: Runs of one recipe.
        theirs: Runs of the other.
        folders: The folders of data, by the option that names each.
        path: The file that is written.

    Returns:
        The path.
    """
    cells: dict[_Cell, list[tuple[Result, Result]]] = defaultdict(list)
    for own in ours:
        for other in theirs:
            if _begin_from_one_model(own, other):
                cells[own["backbone"], own["task"]].append((own, other))
    rows = []
    for (backbone, name), pairs in sorted(cells.items()):
        row = _compared(name, pairs, folders)
        if row is not None:
            rows.append({"backbone": backbone, **row})
    if not rows:
        raise PonderError("no two runs begin from one model and keep the answers of their rows.")
    recipes = [ours[0]["recipe"], theirs[0]["recipe"]]
    made = {"recipes": recipes, "rows": rows, "environment": environment(torch.device("cpu"))}
    write_json(path, made)
    return path


def _begin_from_one_model(own: Result, other: Result) -> bool:
    """Whether two runs took over one fine-tuned model: the seconds of its training are the same to the last digit."""
    named = ("backbone", "task")
    return (
        all(own[name] == other[name] for name in named)
        and own.seed == other.seed
        and bool(own["training"][0]["seconds"] == other["training"][0]["seconds"])
    )


def _compared(
    name: str, pairs: Sequence[tuple[Result, Result]], folders: Mapping[str, Path | None]
) -> dict[str, object] | None:
    """Return the gap of a task and its interval; None if no pair keeps the answers of its rows."""
    task = tasks.get(name)
    if task.kind == "regression":
        return None
    (split,) = task.dev_splits
    data = task.load(folders[task.folder_option], [split])[split]
    labels = np.asarray(data["label"])
    seeds = []
    replayed = []
    for own, other in pairs:
        first = Replayed.of(own, task, labels)
        second = Replayed.of(other, task, labels)
        if first is not None and second is not None:
            seeds.append(own.seed)
            replayed.append((first, second))
    if not replayed:
        return None
    found = paired_bootstrap([own for own, _ in replayed], [other for _, other in replayed])
    return {"task": name, "seeds": seeds, "examples": len(labels), **dataclasses.asdict(found)}
