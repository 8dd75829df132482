"""Runs in this process, one after the other: for a debugger, and for tests."""

from __future__ import annotations

from collections import deque

from benchmarks.glue.sweeping.executors.base import Executor, Job, Outcome, Resources, execute

__all__ = ["InlineExecutor", "make"]


class InlineExecutor(Executor):
    """Each `collect` does one job."""

    def __init__(self) -> None:
        self._queue: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Take a job."""
        self._queue.append(job)

    def collect(self, timeout: float) -> list[Outcome]:
        """Do the next job."""
        return [execute(self._queue.popleft())] if self._queue else []

    def close(self) -> None:
        """Forget the jobs that were not begun."""
        self._queue.clear()

    @property
    def running(self) -> list[Job]:
        """The job that is next."""
        return list(self._queue)[:1]


def make(resources: Resources) -> Executor:
    """The executor; one run at a time, whatever the resources."""
    return InlineExecutor()
