"""Paired bootstrap over dev examples and seeds: is the difference between two recipes more than luck?

Every replicate draws the examples of dev with replacement, the same ones for all runs of a task, and the seeds with
replacement, the same ones for both recipes. The difference of the recipes' mean scores over the drawn seeds is the
replicate's value; its spread is that of examples and seeds together. (`scipy.stats.bootstrap` resamples on one level.)

Reference: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; Berg-Kirkpatrick et al., "An Empirical
Investigation of Statistical Significance in NLP", EMNLP 2012.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import metrics
from benchmarks.tasks import Task

__all__ = ["Comparison", "Replicates", "compare", "holm", "replicate"]

_Array = NDArray[Any]
_SEED_STREAM = 7919  # keeps the draw of seeds apart from that of examples
_DRAWS_AT_ONCE = 2_000_000


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
