"""Which runs a search needs, and which point it chooses: scikit-learn's, replayed over the scores that are there.

What scikit-learn takes for fitting is a look at the score of a run. So a search has no state beside the results, and
one that was cut off is replayed to where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from sklearn.base import BaseEstimator
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 (makes the next import possible)
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV

from benchmarks.glue.config import RunConfig

__all__ = ["FAILED", "Search", "replay", "rung_sizes"]

FAILED = -2.0
"""The score of a run that failed: below every score of GLUE."""


@dataclass(frozen=True)
class Search:
    """How far a search is.

    Args:
        rungs: The runs of each rung so far; in all but the last, each has a score. A grid has one rung.
        best: The chosen run; None while runs of the last rung have no score, and where all have failed.
    """

    rungs: tuple[tuple[RunConfig, ...], ...]
    best: RunConfig | None


def replay(points: Sequence[RunConfig], halving: int | None, score: Callable[[RunConfig], float | None]) -> Search:
    """Try every point or, with successive halving (Jamieson and Talwalkar, 2016), go on with the best of each rung.

    Args:
        points: Configurations to choose from, with all their epochs.
        halving: All points are run for a part of their epochs, and of each rung the best 1/`halving` (rounded up) go on
            with `halving` times as many; None runs each for all of them.
        score: Of a run; `FAILED` where it has failed, and None where it is still to be done.
    """
    epochs = points[0].epochs
    whole = 1 if halving is None else _power_up_to(epochs, halving)  # the parts that all epochs are divided into
    rungs: dict[int, list[RunConfig]] = {}
    missing = False

    def look_up(point: int, part: int) -> float:
        nonlocal missing
        if part not in rungs and missing:
            raise _NotYetError
        run = dataclasses.replace(points[point], epochs=-(-epochs * part // whole))
        rungs.setdefault(part, []).append(run)
        found = score(run)
        missing |= found is None
        return FAILED if found is None else found

    grid = {"point": range(len(points))}
    common = {"cv": [([0], [0])], "refit": False, "return_train_score": False, "error_score": "raise"}
    if halving is None:
        searcher = GridSearchCV(_Point(look_up), grid, **common)
    else:
        sizes = {"factor": halving, "resource": "part", "max_resources": whole}
        searcher = HalvingGridSearchCV(_Point(look_up), grid, **sizes, **common)
    try:
        searcher.fit([[0.0]], [0.0])
    except _NotYetError:
        missing = True
    runs = tuple(tuple(rung) for rung in rungs.values())
    if missing or searcher.best_score_ == FAILED:
        return Search(runs, None)
    return Search(runs, dataclasses.replace(points[searcher.best_params_["point"]], epochs=epochs))


@cache
def rung_sizes(points: int, epochs: int, halving: int | None) -> tuple[tuple[int, int], ...]:
    """(runs, epochs) of each rung, the last with all epochs."""
    runs = [RunConfig("RTE", epochs=epochs)] * points
    return tuple((len(rung), rung[0].epochs) for rung in replay(runs, halving, lambda run: 0.0).rungs)


class _Point(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A point of the search as an estimator: `part` is the resource, and the score is looked up."""

    def __init__(self, look_up: Callable[[int, int], float], point: int = 0, part: int = 1) -> None:
        self.look_up, self.point, self.part = look_up, point, part

    def fit(self, inputs: object, targets: object = None) -> _Point:
        return self

    def score(self, inputs: object, targets: object = None) -> float:
        return self.look_up(self.point, self.part)


class _NotYetError(Exception):
    """The next rung depends on runs that have no score yet."""


def _power_up_to(limit: int, base: int) -> int:
    """The greatest power of `base` that is at most `limit`."""
    power = 1
    while power * base <= limit:
        power *= base
    return power
