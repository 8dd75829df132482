"""Executors: where the runs of a sweep are done: in this process, on a pool of processes, or on a Ray cluster."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.glue.config import RunConfig
from benchmarks.glue.distributed import BusyError
from ponder.errors import ArgumentError, PonderError

__all__ = [
    "Executor",
    "InlineExecutor",
    "Job",
    "LocalExecutor",
    "Outcome",
    "RayExecutor",
    "Resources",
    "execute",
    "get",
    "names",
]


@dataclass(frozen=True)
class Job:
    """One run and its places, which are those of `benchmarks.glue.run.run`; `wait` is for one that others are at."""

    config: RunConfig
    folder: Path | None
    out: Path
    work: Path
    stages: Path | None = None
    models: Path | None = None
    wait: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a job ended: ``"busy"`` where another process is at it, and what went wrong, in one line and in full."""

    job: Job
    status: Literal["done", "failed", "busy"]
    seconds: float = 0.0
    error: str = ""
    details: str = ""


@dataclass(frozen=True)
class Resources:
    """What runs may use.

    Args:
        workers: Runs at a time.
        threads: Threads of each run; where None, the cores divided by the workers.
        cpus_per_run: Cores that a cluster sets aside for a run.
        gpus_per_run: GPUs that a cluster sets aside for a run; a part of one lets runs share it.
        address: Of a cluster; one is started here where None.
    """

    workers: int = 1
    threads: int | None = None
    cpus_per_run: float = 1.0
    gpus_per_run: float = 0.0
    address: str | None = None

    def __post_init__(self) -> None:
        for argument, low in (("workers", 1), ("threads", 1), ("cpus_per_run", 0.01), ("gpus_per_run", 0.0)):
            value = getattr(self, argument)
            if value is not None and value < low:
                option = "--" + argument.replace("_", "-")
                raise ArgumentError(option, expected=f"a number ≥ {low}", got=value, remedy="Raise it.")


def execute(job: Job) -> Outcome:
    """Do a job in this process; whatever it raises is its outcome."""
    from benchmarks.glue.run import run  # here, since its libraries read on import what `_prepare` sets in a worker

    started = time.perf_counter()
    options: dict[str, Any] = {"wait": job.wait, "strict": False, "progress": False}
    try:
        run(job.config, job.folder, job.out, job.work, stages=job.stages, models=job.models, **options)
    except BusyError:
        return Outcome(job, "busy")
    except Exception as error:  # out of memory, bad data, a full disk: the other runs go on
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where there is no GPU
        line = f"{type(error).__name__}: {error}".strip()
        return Outcome(job, "failed", time.perf_counter() - started, line, traceback.format_exc())
    return Outcome(job, "done", time.perf_counter() - started)


class Executor(ABC):
    """Does jobs, several at a time; a context that on leaving ends what still runs."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Take a job; returns at once."""

    @abstractmethod
    def collect(self, timeout: float) -> list[Outcome]:
        """Jobs that ended since the last call; waits up to `timeout` seconds for the first."""

    @abstractmethod
    def close(self) -> None:
        """End what still runs; runs go on from their last checkpoint another time."""

    @property
    @abstractmethod
    def running(self) -> list[Job]:
        """Jobs that are at work now."""

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class InlineExecutor(Executor):
    """Runs in this process, one for each `collect`: for a debugger, and for tests."""

    def __init__(self) -> None:
        self._queue: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def collect(self, timeout: float) -> list[Outcome]:
        return [execute(self._queue.popleft())] if self._queue else []

    def close(self) -> None:
        self._queue.clear()

    @property
    def running(self) -> list[Job]:
        return list(self._queue)[:1]


class LocalExecutor(Executor):
    """Runs in processes on this machine.

    Each worker is a pool of one, so that a worker which the system kills (out of memory, say) takes its own run with it
    and no other, and it is known which run that was. Workers are started afresh (spawn), keep their libraries loaded
    from run to run, and end when the sweep ends, however it does.

    Args:
        workers: Their number.
        threads: Threads of each.
        do: What is done with a job, in the worker.
    """

    def __init__(self, workers: int, threads: int, do: Callable[[Job], Outcome] = execute) -> None:
        self._threads, self._do, self._unborn = threads, do, workers
        self._idle: list[_Worker] = []
        self._queue: deque[Job] = deque()
        self._busy: dict[Future[Outcome], tuple[_Worker, Job, float]] = {}

    def submit(self, job: Job) -> None:
        self._queue.append(job)
        self._start()

    def collect(self, timeout: float) -> list[Outcome]:
        done, _ = wait_for(self._busy, timeout=timeout, return_when=FIRST_COMPLETED)
        outcomes = []
        for future in done:
            worker, job, started = self._busy.pop(future)
            try:
                outcomes.append(future.result())
                self._idle.append(worker)
            except BrokenProcessPool:
                self._replace(worker)
                text = "WorkerDied: the system killed the worker of this run (out of memory?), or it crashed."
                outcomes.append(Outcome(job, "failed", time.perf_counter() - started, text))
        self._start()
        return outcomes

    def close(self) -> None:
        self._queue.clear()
        for worker in [*self._idle, *(worker for worker, _, _ in self._busy.values())]:
            worker.end()
        self._idle, self._busy = [], {}

    @property
    def running(self) -> list[Job]:
        return [job for _, job, _ in self._busy.values()]

    def _start(self) -> None:
        while self._queue and (self._idle or self._unborn):
            if not self._idle:
                self._unborn -= 1
                self._idle.append(_Worker(self._threads))
            worker = self._idle.pop()
            try:
                future = worker.pool.submit(self._do, self._queue[0])
            except BrokenProcessPool:  # it died while it had nothing to do: no run's fault
                self._replace(worker)
            else:
                self._busy[future] = (worker, self._queue.popleft(), time.perf_counter())

    def _replace(self, worker: _Worker) -> None:
        """End it; another is started when it is needed."""
        worker.end()
        self._unborn += 1


class _Worker:
    """A process, and a line to it: it ends when the line is cut, by `end` or by the death of this process."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        theirs, self._line = context.Pipe(duplex=False)
        self.pool = ProcessPoolExecutor(1, context, initializer=_prepare, initargs=(theirs, threads))

    def end(self) -> None:
        self._line.close()
        self.pool.shutdown(wait=True, cancel_futures=True)


def _prepare(line: Connection, threads: int) -> None:
    """In a new worker, before its first run."""

    def end_with_the_line() -> None:
        try:
            line.poll(None)
        finally:
            os._exit(1)

    threading.Thread(target=end_with_the_line, daemon=True).start()
    os.environ.update(
        OMP_NUM_THREADS=str(threads),
        MKL_NUM_THREADS=str(threads),
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_DISABLE_PROGRESS_BARS="1",  # bars and warnings would be written across the table of the sweep
        HF_DATASETS_DISABLE_PROGRESS_BARS="1",
        TRANSFORMERS_VERBOSITY="error",
    )
    torch.set_num_threads(threads)


class RayExecutor(Executor):
    """Runs as tasks of a Ray cluster (the extra `ray`), which decides how many at a time from what each asks for.

    All machines have to see the folders of results and data.
    """

    def __init__(self, ray: Any, resources: Resources) -> None:
        self._ray = ray
        # Ray sets OMP_NUM_THREADS to the cores of a task. A run that dies is the sweep's business, not retried by Ray.
        options = {"num_cpus": resources.cpus_per_run, "num_gpus": resources.gpus_per_run, "max_retries": 0}
        self._execute = ray.remote(**options)(execute)
        self._jobs: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        self._jobs[self._execute.remote(job)] = job

    def collect(self, timeout: float) -> list[Outcome]:
        ready, _ = self._ray.wait(list(self._jobs), num_returns=1, timeout=timeout) if self._jobs else ([], [])
        return [self._outcome(reference, self._jobs.pop(reference)) for reference in ready]

    def close(self) -> None:
        for reference in self._jobs:
            self._ray.cancel(reference, force=True)
        self._jobs = {}
        self._ray.shutdown()

    @property
    def running(self) -> list[Job]:
        return list(self._jobs.values())  # Ray does not say which of them wait for a place

    def _outcome(self, reference: Any, job: Job) -> Outcome:
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:  # the worker or its machine died
            line = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            return Outcome(job, "failed", error=line, details=str(error))
        return outcome


def _local(resources: Resources) -> Executor:
    threads = resources.threads or max(1, (os.cpu_count() or 1) // resources.workers)
    return LocalExecutor(resources.workers, threads)


def _ray(resources: Resources) -> Executor:
    """On a cluster that is there (`resources.address`), or on one that is started here."""
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


_MAKERS: dict[str, Callable[[Resources], Executor]] = {
    "local": _local,
    "ray": _ray,
    "inline": lambda resources: InlineExecutor(),
}


def names() -> tuple[str, ...]:
    """Names of the executors."""
    return tuple(_MAKERS)


def get(name: str, resources: Resources) -> Executor:
    """The executor of a name: ``"local"``, ``"ray"`` or ``"inline"``."""
    if name not in _MAKERS:
        raise ArgumentError("--executor", expected=f"one of {', '.join(_MAKERS)}", got=repr(name), remedy="Choose one.")
    return _MAKERS[name](resources)
