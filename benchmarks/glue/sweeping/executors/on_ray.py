"""Runs on a cluster, through Ray (the extra `ray`). All machines have to see the folders of results and data."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.glue.sweeping.executors.base import Executor, Job, Outcome, Resources, execute
from ponder.errors import PonderError

__all__ = ["RayExecutor", "make"]


class RayExecutor(Executor):
    """Runs as Ray tasks; Ray decides how many at a time, from what each asks for.

    Args:
        ray: The module, connected to a cluster.
        resources: What each run asks for.
    """

    def __init__(self, ray: Any, resources: Resources) -> None:
        self._ray = ray
        # Ray sets OMP_NUM_THREADS to the cores of a task. A run that dies is the sweep's business, not retried by Ray.
        options = {"num_cpus": resources.cpus_per_run, "num_gpus": resources.gpus_per_run, "max_retries": 0}
        self._execute = ray.remote(**options)(execute)
        self._jobs: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        """Hand a job to Ray."""
        self._jobs[self._execute.remote(job)] = job

    def collect(self, timeout: float) -> list[Outcome]:
        """Jobs that ended."""
        if not self._jobs:
            return []
        ready, _ = self._ray.wait(list(self._jobs), num_returns=1, timeout=timeout)
        return [self._outcome(reference) for reference in ready]

    def close(self) -> None:
        """Cancel what still runs, and leave the cluster."""
        for reference in self._jobs:
            self._ray.cancel(reference, force=True)
        self._jobs = {}
        self._ray.shutdown()

    @property
    def running(self) -> list[Job]:
        """Jobs that Ray has; it does not say which of them wait for a place."""
        return list(self._jobs.values())

    def _outcome(self, reference: Any) -> Outcome:
        job = self._jobs.pop(reference)
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:  # the worker or its machine died
            return Outcome(
                job, "failed", error=f"{type(error).__name__}: {str(error).splitlines()[0]}", details=str(error)
            )
        return outcome


def make(resources: Resources) -> Executor:
    """The executor, on a cluster that is there (`resources.address`) or on one that is started here."""
    try:
        import ray
    except ImportError as error:
        raise PonderError("--executor ray needs Ray: pip install 'ponder-torch[ray]'.") from error
    here = resources.address is None
    ray.init(
        address=resources.address,
        num_cpus=math.ceil(resources.workers * resources.cpus_per_run) if here else None,
        include_dashboard=False if here else None,
        log_to_driver=False,
    )
    return RayExecutor(ray, resources)
