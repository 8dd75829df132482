"""Paired bootstrap over dev examples and seeds: is the difference between two recipes more than luck?

Every replicate draws the examples of dev with replacement, the same ones for all runs of a task, and the seeds with
replacement, the same ones for both recipes. The difference of the recipes' mean scores over the drawn seeds is the
replicate's value; its spread is that of examples and seeds together. (`scipy.stats.bootstrap` resamples on one level.)

Reference: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; Berg-Kirkpatrick et al., "An Empirical
Investigation of Statistical Significance in NLP", EMNLP 2012.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import metrics
from benchmarks import tasks as registry
from benchmarks.glue.report.groups import Group, Groups, averaged, ordered, task_order
from benchmarks.tasks import Task
from ponder.errors import DataError
from ponder.pages import Block, Heading, Table, Text

__all__ = ["Comparison", "Replicates", "compare", "comparisons", "holm", "replicate"]

_Array = NDArray[Any]
_SEED_STREAM = 7919  # keeps the draw of seeds apart from that of examples
_DRAWS_AT_ONCE = 2_000_000
_LEVEL = 0.05
_NOTE = (
    "Row minus column, in points: means over the common seeds. Paired bootstrap over dev examples and seeds, "
    f"{{:,}} replicates; in brackets the 95% interval. **Bold**: p < {_LEVEL} after Holm's adjustment over the table. "
    "¹ One seed in common (of a macro: on one of its tasks at least): the interval is over examples alone, and says "
    "nothing about other seeds. With two or three seeds it is still too narrow in that."
)


@dataclass(frozen=True)
class Replicates:
    """Scores of one recipe on one task, of each seed `(seeds,)`, and bootstrapped, `(seeds, replicates)`."""

    scores: _Array
    drawn: _Array
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """One recipe against another: the difference with its 95% interval, and the number of seeds that both have."""

    difference: float
    low: float
    high: float
    p: float
    seeds: int


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


def replicate(
    task: Task, runs: Mapping[int, Mapping[str, _Array]], labels: Mapping[str, _Array], count: int, seed: int = 0
) -> Replicates:
    """Score resampled dev sets: `runs` holds, by seed, the predictions `(examples,)` of each split.

    The same `seed` for two recipes makes them paired.
    """
    points, drawn = [], []
    for run in runs.values():
        points.append(np.mean([metrics.score(task, given, labels[s])["score"] for s, given in run.items()]))
        drawn.append(np.mean([_resampled(task, given, labels[s], count, seed) for s, given in run.items()], axis=0))
    return Replicates(np.array(points), np.array(drawn), tuple(runs))


def compare(pairs: Sequence[tuple[Replicates, Replicates]], seed: int = 0) -> Comparison | None:
    """Compare two recipes on one task, or on the mean over several, of which each is a pair with the same draws.

    Returns:
        First recipe minus second; None where a task has no common seed.
    """
    differences, samples, common = [], [], []
    for place, (one, other) in enumerate(pairs):
        seeds = sorted(set(one.seeds) & set(other.seeds))
        if not seeds:
            return None
        ours, theirs = ([each.seeds.index(seed) for seed in seeds] for each in (one, other))
        gaps = one.drawn[ours] - other.drawn[theirs]
        draws = np.random.default_rng((seed, _SEED_STREAM, place)).integers(len(seeds), size=gaps.shape)
        samples.append(np.take_along_axis(gaps, draws, axis=0).mean(0))
        differences.append(float(np.mean(one.scores[ours] - other.scores[theirs])))
        common.append(len(seeds))
    values = np.mean(samples, axis=0)
    low, high = np.quantile(values, [0.025, 0.975])
    tail = min(np.sum(values <= 0), np.sum(values >= 0))
    p = min(1.0, 2 * (int(tail) + 1) / (len(values) + 1))
    return Comparison(float(np.mean(differences)), float(low), float(high), p, min(common))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment for several comparisons at once (Holm 1979); SciPy has none.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    raised = np.minimum(1.0, np.asarray(p_values)[order] * np.arange(len(order), 0, -1))
    return [float(p) for p in np.maximum.accumulate(raised)[np.argsort(order)]]


def _resampled(task: Task, predictions: _Array, labels: _Array, count: int, seed: int) -> _Array:
    """The score of each replicate, `(count,)`."""
    generator, size = np.random.default_rng(seed), len(labels)
    at_once = max(1, _DRAWS_AT_ONCE // size)  # dev of QQP times all replicates would not fit in memory
    parts = []
    for start in range(0, count, at_once):
        draws = generator.integers(size, size=(min(at_once, count - start), size))
        parts.append(np.mean(list(metrics.measure(task, predictions[draws], labels[draws]).values()), axis=0))
    return np.concatenate(parts)


def _replicates(task: Task, group: Group, labels: Mapping[str, _Array], count: int) -> Replicates:
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
