"""Batch queues: rows stand in the queue of the weights that they need next, and one queue runs at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from ponder.inference.batching import BatchLimits, Filling
from ponder.inference.streaming.cohort import Cohort
from ponder.inference.streaming.request_queue import RequestQueue
from ponder.inference.streaming.requests import Request

__all__ = ["BatchKey", "BatchQueues"]


@dataclass(frozen=True)
class BatchKey:
    """Which rows may share a step: the weights (the index of a callable of `Steps`), and the kind of the rows."""

    weights: int
    signature: Hashable


class BatchQueues:
    """The rows that are running, by what they need next.

    A model of shared steps has one queue, where rows of all depths stand together; a stacked model one for each step.

    Args:
        schedule: `Steps.schedule`: the weights of each step.
        waiting: Rows that wait in front of their first step.
        limits: How large a step's batch may be.
        max_skips: How often a queue may be passed over before it goes first.
    """

    def __init__(self, schedule: Sequence[int], waiting: RequestQueue, limits: BatchLimits, max_skips: int) -> None:
        assert limits.rows is not None
        self._schedule, self._waiting, self._limits, self._max_skips = schedule, waiting, limits, max_skips
        self._cohorts: dict[BatchKey, list[Cohort]] = {}
        self._skips: dict[BatchKey, int] = {}
        self._shared = len(set(schedule)) == 1
        self._max_rows = limits.rows
        self.max_active = 2 * limits.rows * len(set(schedule))  # running rows at which nobody else is let in

    def __len__(self) -> int:
        return sum([len(cohort.requests) for cohorts in self._cohorts.values() for cohort in cohorts])

    def enter(self, cohort: Cohort) -> None:
        """Let rows stand in front of their next steps."""
        signature = cohort.requests[0].signature
        if self._shared:
            self._cohorts.setdefault(BatchKey(self._schedule[0], signature), []).append(cohort)
            return
        places: dict[int, list[int]] = {}
        for position, step in enumerate(cohort.steps):
            places.setdefault(self._schedule[step], []).append(position)
        for weights, positions in places.items():
            self._cohorts.setdefault(BatchKey(weights, signature), []).append(cohort.take(positions))

    def next(self) -> BatchKey | None:
        """The queue to run: one that was passed over too often, else the fullest, the deepest of equals.

        While too many rows are running, nobody is let in; a queue in which rows only wait is then passed over as well.
        """
        first = self._schedule[0]
        waiting = {BatchKey(first, signature): rows for signature, rows in self._waiting.counts().items()}
        keys = list(dict.fromkeys([*self._cohorts, *waiting]))
        full = len(self) >= self.max_active
        candidates = list(self._cohorts) if full else keys
        if len(keys) < 2:
            self._skips = {}
            return candidates[0] if candidates else None
        chosen, best = candidates[0], (-1, -1, -1)
        for key in candidates:
            rank = self._rank(key, 0 if full else waiting.get(key, 0))
            if rank > best:
                chosen, best = key, rank
        self._skips = {key: self._skips.get(key, 0) + 1 for key in keys if key != chosen}
        return chosen

    def _rank(self, key: BatchKey, waiting: int) -> tuple[int, int, int]:
        cohorts, skips = self._cohorts.get(key, []), self._skips.get(key, 0)
        depth = max([max(cohort.steps) for cohort in cohorts], default=0)
        overdue = skips if skips >= self._max_skips else 0
        return overdue, min(waiting + sum([len(cohort.requests) for cohort in cohorts]), self._max_rows), depth

    def leave(self, key: BatchKey) -> tuple[list[Cohort], list[Request]]:
        """Take the rows of a queue that run now, the oldest first, and the waiting ones that fill the free slots."""
        filling, chosen, rest = Filling(self._limits), list[Cohort](), list[Cohort]()
        for cohort in self._cohorts.pop(key, []):
            size = len(cohort.requests)
            count = 0 if rest else filling.take_first([request.length for request in cohort.requests])
            chosen += [cohort.take(range(count))] if count else []
            rest += [cohort.take(range(count, size))] if count < size else []
        if rest:
            self._cohorts[key] = rest
        if rest or key.weights != self._schedule[0]:
            return chosen, []
        return chosen, self._waiting.take(key.signature, filling.take)

    def remove(self, gone: Callable[[Request], bool]) -> list[Cohort]:
        """Take out the rows of the requests for which `gone` holds."""
        removed: list[Cohort] = []
        for key, cohorts in list(self._cohorts.items()):
            kept: list[Cohort] = []
            for cohort in cohorts:
                leaving = [position for position, request in enumerate(cohort.requests) if gone(request)]
                staying = sorted(set(range(len(cohort))) - set(leaving))
                removed += [cohort.take(leaving)] if leaving else []
                kept += [cohort.take(staying)] if staying else []
            if kept:
                self._cohorts[key] = kept
            else:
                del self._cohorts[key]
        return removed
