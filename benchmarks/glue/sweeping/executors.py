"""Executors: where the runs of a sweep are done: in this process, in processes of this machine, or on a Ray cluster.

An executor is a context that gives a function from jobs to futures, and on leaving ends what still runs; a run that was
ended goes on from its last checkpoint another time.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import torch

from benchmarks.glue.config import RunConfig
from benchmarks.locking import BusyError
from ponder.errors import ArgumentError, PonderError

__all__ = ["Job", "Outcome", "Submit", "execute", "get", "inline", "local", "on_ray"]


@dataclass(frozen=True)
class Job:
    """One run and its places, which are those of `benchmarks.glue.run.run`; `wait` is for one that others are at."""

    config: RunConfig
    folder: Path | None
    out: Path
    work: Path
    models: Path | None = None
    wait: bool = False

    @property
    def result(self) -> Path:
        """The file that it writes."""
        return self.out / f"{self.config.key}.json"


@dataclass(frozen=True)
class Outcome:
    """How a job ended: ``"busy"`` where another process is at it, and what went wrong, in one line and in full."""

    status: Literal["done", "failed", "busy"]
    seconds: float = 0.0
    error: str = ""
    details: str = ""

    @classmethod
    def of(cls, future: Future[Outcome]) -> Outcome:
        """What a job gave, or how its worker ended."""
        try:
            return future.result()
        except BrokenProcessPool:
            text = "WorkerDied: the system killed the worker of this run (out of memory?), or it crashed."
            return cls("failed", error=text)
        except Exception as error:  # of Ray, whose worker or machine died
            line = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            return cls("failed", error=line, details=str(error))


Submit = Callable[[Job], Future[Outcome]]


def execute(job: Job) -> Outcome:
    """Do a job in this process; whatever it raises is its outcome."""
    from benchmarks.glue.run import run  # here, since its libraries read on import what `_prepare` sets in a worker

    started = time.perf_counter()
    try:
        run(job.config, job.folder, job.out, job.work, models=job.models, wait=job.wait, progress=False)
    except BusyError:
        return Outcome("busy")
    except Exception as error:  # out of memory, bad data, a full disk: the other runs go on
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where there is no GPU
        line = f"{type(error).__name__}: {error}".strip()
        return Outcome("failed", time.perf_counter() - started, line, traceback.format_exc())
    return Outcome("done", time.perf_counter() - started)


@contextmanager
def inline() -> Iterator[Submit]:
    """Runs in this process, while they are submitted: for a debugger, and for tests."""

    def submit(job: Job) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        future.set_result(execute(job))
        return future

    yield submit


@contextmanager
def local(threads: int, do: Callable[[Job], Outcome] = execute) -> Iterator[Submit]:
    """Each run in a process of its own with so many threads, which takes no other run with it where it is killed.

    Processes are started afresh (spawn), and end when a line to this process is cut: by the end of the sweep, however
    it comes.
    """
    context, pools = multiprocessing.get_context("spawn"), list[ProcessPoolExecutor]()
    theirs, ours = context.Pipe(duplex=False)

    def submit(job: Job) -> Future[Outcome]:
        pool = ProcessPoolExecutor(1, context, initializer=_prepare, initargs=(theirs, threads))
        pools.append(pool)
        future = pool.submit(do, job)
        future.add_done_callback(lambda _: pool.shutdown(wait=False))
        return future

    try:
        yield submit
    finally:
        ours.close()
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)


def _prepare(line: Connection, threads: int) -> None:
    """Prepare a new process for its run."""

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


@contextmanager
def on_ray(workers: int, cpus_per_run: float, gpus_per_run: float, address: str | None) -> Iterator[Submit]:
    """Runs as tasks of a Ray cluster (the extra `ray`), which has so many cores and GPUs set aside for each.

    It is the one at `address`, or one for `workers` runs at a time that is started here. All machines have to see the
    folders of results and data.
    """
    try:
        import ray
    except ImportError as error:
        raise PonderError("--executor ray needs Ray: pip install 'ponder-torch[ray]'.") from error
    cores = math.ceil(workers * cpus_per_run) if address is None else None
    dashboard = False if address is None else None
    ray.init(address=address, num_cpus=cores, include_dashboard=dashboard, log_to_driver=False)
    # Ray sets OMP_NUM_THREADS to the cores of a task. A run that dies is the sweep's business, not retried by Ray.
    task = ray.remote(num_cpus=cpus_per_run, num_gpus=gpus_per_run, max_retries=0)(execute)
    try:
        yield lambda job: task.remote(job).future()
    finally:
        ray.shutdown()  # with it end the tasks of this process


def get(
    name: str, workers: int, threads: int | None, cpus_per_run: float, gpus_per_run: float, address: str | None
) -> AbstractContextManager[Submit]:
    """The executor of a name, ``"local"``, ``"ray"`` or ``"inline"``, with what its runs may use."""
    made: dict[str, Callable[[], AbstractContextManager[Submit]]] = {
        "local": lambda: local(threads or max(1, (os.cpu_count() or 1) // workers)),
        "ray": lambda: on_ray(workers, cpus_per_run, gpus_per_run, address),
        "inline": inline,
    }
    if name not in made:
        raise ArgumentError("--executor", expected=f"one of {', '.join(made)}", got=repr(name), remedy="Choose one.")
    return made[name]()
