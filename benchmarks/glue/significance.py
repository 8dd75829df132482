"""Paired bootstrap over dev examples and seeds: is the difference between two recipes more than luck?

Every replicate draws the examples of dev with replacement, the same ones for all runs of a task, and the seeds with
replacement, the same ones for both recipes. The difference of the recipes' mean scores over the drawn seeds is the
replicate's value; its spread is that of examples and seeds together.

Reference: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; Berg-Kirkpatrick et al., "An Empirical
Investigation of Statistical Significance in NLP", EMNLP 2012.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.glue import metrics
from benchmarks.glue.tasks import GlueTask
from ponder.errors import ArgumentError

__all__ = ["Comparison", "Replicates", "compare", "holm", "pack", "replicate", "unpack"]

_Array = NDArray[Any]
_SEED_STREAM = 7919  # keeps the draw of seeds apart from that of examples
_DRAWS_AT_ONCE = 2_000_000


def pack(task: GlueTask, predictions: _Array) -> str:
    """Predictions as one line of text, which is how a result keeps them: class numbers, or scores to four digits.

    Example:
        >>> from benchmarks.glue import tasks
        >>> pack(tasks.get("RTE"), np.array([0, 1, 1]))
        '0 1 1'
    """
    return " ".join(f"{value:.5g}" if task.kind == "regression" else str(int(value)) for value in predictions)


def unpack(task: GlueTask, text: str) -> _Array:
    """Inverse of `pack`."""
    return np.array(text.split(), dtype=np.float64 if task.kind == "regression" else np.int64)


@dataclass(frozen=True)
class Replicates:
    """Bootstrapped scores of one recipe on one task.

    Args:
        scores: Of each seed on dev, `(seeds,)`.
        drawn: Of each seed on each replicate of the examples, `(seeds, replicates)`.
        seeds: Seeds of the runs.
    """

    scores: _Array
    drawn: _Array
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """One recipe against another.

    Args:
        difference: Of the mean scores over the common seeds.
        low: Of the 95% interval (percentiles of the replicates).
        high: Its other end.
        p: Two-sided: twice the share of replicates on the other side of 0, no less than 2 / (replicates + 1).
        seeds: Common seeds.
    """

    difference: float
    low: float
    high: float
    p: float
    seeds: int


def replicate(
    task: GlueTask,
    runs: Mapping[int, Mapping[str, _Array]],
    labels: Mapping[str, _Array],
    count: int,
    seed: int = 0,
) -> Replicates:
    """Score resampled dev sets.

    Args:
        task: The task.
        runs: By seed, the predictions `(examples,)` of each split of dev.
        labels: Of each split.
        count: Replicates.
        seed: Of the draw; the same for two recipes makes them paired.
    """
    for predictions in runs.values():
        for split, answers in predictions.items():
            _check(split, answers, labels[split])
    points, drawn = [], []
    for predictions in runs.values():
        by_split = [_resampled(task, answers, labels[split], count, seed) for split, answers in predictions.items()]
        drawn.append(np.mean(by_split, axis=0))
        points.append(np.mean([metrics.score(task, each, labels[name])["score"] for name, each in predictions.items()]))
    return Replicates(np.array(points), np.array(drawn), tuple(runs))


def compare(pairs: Sequence[tuple[Replicates, Replicates]], seed: int = 0) -> Comparison | None:
    """Compare two recipes on one task, or on the mean over several.

    Args:
        pairs: The two recipes on each task, replicated with the same seed.
        seed: Of the draw of seeds.

    Returns:
        First recipe minus second; None where a task has no common seed.
    """
    differences, samples, common = [], [], []
    for place, (one, other) in enumerate(pairs):
        seeds = sorted(set(one.seeds) & set(other.seeds))
        if not seeds:
            return None
        rows = [(one.seeds.index(each), other.seeds.index(each)) for each in seeds]
        ours, theirs = ([row[side] for row in rows] for side in (0, 1))
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
    """Holm's adjustment for several comparisons at once (Holm 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, greatest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = greatest
    return adjusted


def _check(split: str, predictions: _Array, labels: _Array) -> None:
    if predictions.shape != labels.shape:
        raise ArgumentError(
            "predictions",
            expected=f"one for each of the {len(labels)} examples of {split}",
            got=len(predictions),
            remedy="The data in --glue-dir are not those of the run.",
        )


def _resampled(task: GlueTask, predictions: _Array, labels: _Array, count: int, seed: int) -> _Array:
    """GLUE's score of each replicate, `(count,)`."""
    generator, size = np.random.default_rng(seed), len(labels)
    score = _regression if task.kind == "regression" else _classification
    at_once = max(1, _DRAWS_AT_ONCE // size)  # dev of QQP times all replicates would not fit in memory
    parts = []
    for start in range(0, count, at_once):
        draws = generator.integers(size, size=(min(at_once, count - start), size))
        parts.append(score(task, predictions[draws], labels[draws]))
    return np.concatenate(parts)


def _classification(task: GlueTask, predictions: _Array, labels: _Array) -> _Array:
    """Of each row, from its confusion matrix, which is many times faster than the metrics' own functions."""
    rows, cells = len(labels), task.num_labels**2
    places = np.arange(rows)[:, None] * cells + labels * task.num_labels + predictions
    tables = np.bincount(places.ravel(), minlength=rows * cells).reshape(rows, task.num_labels, -1).astype(float)
    values = {"accuracy": _accuracy, "f1": _f1, "matthews": _matthews}
    return np.asarray(np.mean([values[name](tables) for name in task.metrics], axis=0))


def _accuracy(tables: _Array) -> _Array:
    return np.asarray(np.trace(tables, axis1=1, axis2=2) / tables.sum((1, 2)))


def _f1(tables: _Array) -> _Array:
    right = 2 * tables[:, 1, 1]
    return _ratio(right, right + tables[:, 0, 1] + tables[:, 1, 0])


def _matthews(tables: _Array) -> _Array:
    (tn, fp), (fn, tp) = np.moveaxis(tables, 0, -1)
    return _ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


def _regression(task: GlueTask, predictions: _Array, labels: _Array) -> _Array:
    values = {"pearson": _pearson, "spearman": _spearman}
    return np.asarray(np.mean([values[name](predictions, labels) for name in task.metrics], axis=0))


def _spearman(x: _Array, y: _Array) -> _Array:
    return _pearson(stats.rankdata(x, axis=1), stats.rankdata(y, axis=1))


def _pearson(x: _Array, y: _Array) -> _Array:
    x, y = (each - each.mean(1, keepdims=True) for each in (x, y))
    return _ratio((x * y).sum(1), np.sqrt((x**2).sum(1) * (y**2).sum(1)))


def _ratio(above: _Array, below: _Array) -> _Array:
    """0 where it is not defined, as the metrics have it."""
    return np.divide(above, below, out=np.zeros_like(below), where=below != 0)
