"""Paired bootstrap over dev examples and seeds: is the difference between two recipes more than luck?

Every replicate draws the examples of dev with replacement, the same ones for all runs of a task, and the seeds with
replacement, the same ones for both recipes. The difference of the recipes' mean scores over the drawn seeds is the
replicate's value; its spread is that of examples and seeds together. (`scipy.stats.bootstrap` resamples on one level.)

Reference: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; Berg-Kirkpatrick et al., "An Empirical
Investigation of Statistical Significance in NLP", EMNLP 2012.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.glue import metrics
from benchmarks.tasks import Task
from ponder.errors import ArgumentError

__all__ = ["Comparison", "Replicates", "compare", "holm", "pack", "replicate", "unpack"]

_Array = NDArray[Any]
_SEED_STREAM = 7919  # keeps the draw of seeds apart from that of examples
_DRAWS_AT_ONCE = 2_000_000


def pack(task: Task, predictions: _Array) -> str:
    """Predictions as one line of text, which is how a result keeps them: class numbers, or scores to four digits.

    Example:
        >>> from benchmarks import tasks
        >>> pack(tasks.get("RTE"), np.array([0, 1, 1]))
        '0 1 1'
    """
    return " ".join(f"{value:.5g}" if task.kind == "regression" else str(int(value)) for value in predictions)


def unpack(task: Task, text: str) -> _Array:
    """Inverse of `pack`."""
    return np.array(text.split(), dtype=np.float64 if task.kind == "regression" else np.int64)


@dataclass(frozen=True)
class Replicates:
    """Bootstrapped scores of one recipe on one task."""

    scores: _Array
    drawn: _Array
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """One recipe against another."""

    difference: float
    low: float
    high: float
    p: float
    seeds: int


def replicate(
    task: Task, runs: Mapping[int, Mapping[str, _Array]], labels: Mapping[str, _Array], count: int, seed: int = 0
) -> Replicates:
    """Score resampled dev sets.

    Args:
        task: The task.
        runs: By seed, the predictions `(examples,)` of each split of dev.
        labels: Of each split.
        count: Replicates.
        seed: Of the draw; the same for two recipes makes them paired.
    """
    for split, answers in ((split, answers) for run in runs.values() for split, answers in run.items()):
        if answers.shape != labels[split].shape:
            expected = f"one for each of the {len(labels[split])} examples of {split}"
            remedy = "The data in --glue-dir are not those of the run."
            raise ArgumentError("predictions", expected=expected, got=len(answers), remedy=remedy)
    points = [
        np.mean([metrics.score(task, given, labels[s])["score"] for s, given in r.items()]) for r in runs.values()
    ]
    drawn = [
        np.mean([_resampled(task, given, labels[split], count, seed) for split, given in run.items()], axis=0)
        for run in runs.values()
    ]
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
        p, y = predictions[draws], labels[draws]
        inside = np.ones_like(y, dtype=bool) if task.outside is None else y != task.outside
        parts.append(np.mean([_OF_ROWS[name](p, y, inside) for name in task.metrics], axis=0))
    return np.concatenate(parts)


def _accuracy(p: _Array, y: _Array, inside: _Array) -> _Array:
    return _ratio(((p == y) & inside).sum(1).astype(float), inside.sum(1).astype(float))


def _counts(p: _Array, y: _Array) -> list[_Array]:
    """True and false positives, false and true negatives of each row, class 1 being the positive one."""
    pairs = ((1, 1), (1, 0), (0, 1), (0, 0))
    return [((p == answer) & (y == label)).sum(1).astype(float) for answer, label in pairs]


def _f1(p: _Array, y: _Array, _: _Array) -> _Array:
    tp, fp, fn, _tn = _counts(p, y)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _matthews(p: _Array, y: _Array, _: _Array) -> _Array:
    tp, fp, fn, tn = _counts(p, y)
    return _ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


def _pearson(p: _Array, y: _Array, _: _Array) -> _Array:
    p, y = (each - each.mean(1, keepdims=True) for each in (p, y))
    return _ratio((p * y).sum(1), np.sqrt((p**2).sum(1) * (y**2).sum(1)))


def _spearman(p: _Array, y: _Array, inside: _Array) -> _Array:
    return _pearson(stats.rankdata(p, axis=1), stats.rankdata(y, axis=1), inside)


def _ratio(above: _Array, below: _Array) -> _Array:
    """0 where it is not defined, as the metrics have it."""
    return np.divide(above, below, out=np.zeros_like(below), where=below != 0)


# Of every row at once, which is many times faster than the metrics' own functions.
_OF_ROWS: dict[str, Callable[[_Array, _Array, _Array], _Array]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
