"""A pool of processes on this machine.

Each worker is a pool of one, so that a worker which the system kills (out of memory, say) takes its own run with it and
no other, and it is known which run that was. Workers are started afresh (spawn), keep their libraries loaded from run
to run, and end when the sweep ends, however it does.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

import torch

from benchmarks.glue.sweeping.executors.base import Executor, Job, Outcome, Resources, execute

__all__ = ["LocalExecutor", "make"]


class LocalExecutor(Executor):
    """Runs in worker processes.

    Args:
        workers: Their number.
        threads: Threads of each.
        do: What is done with a job, in the worker.
    """

    def __init__(self, workers: int, threads: int, do: Callable[[Job], Outcome] = execute) -> None:
        self._threads, self._do = threads, do
        self._idle: list[_Worker] = []
        self._unborn = workers
        self._queue: deque[Job] = deque()
        self._busy: dict[Future[Outcome], tuple[_Worker, Job, float]] = {}

    def submit(self, job: Job) -> None:
        """Take a job; it starts now where a worker is free."""
        self._queue.append(job)
        self._start()

    def collect(self, timeout: float) -> list[Outcome]:
        """Jobs that ended; a worker that died is replaced when it is needed next."""
        done, _ = wait_for(self._busy, timeout=timeout, return_when=FIRST_COMPLETED)
        outcomes = []
        for future in done:
            worker, job, started = self._busy.pop(future)
            try:
                outcomes.append(future.result())
                self._idle.append(worker)
            except BrokenProcessPool:
                worker.kill()
                self._unborn += 1
                text = "WorkerDied: the system killed the worker of this run (out of memory?), or it crashed."
                outcomes.append(Outcome(job, "failed", time.perf_counter() - started, text))
        self._start()
        return outcomes

    def close(self) -> None:
        """Kill the workers; runs go on from their last checkpoint another time."""
        self._queue.clear()
        for worker in self._idle:
            worker.dismiss()
        for worker, _, _ in self._busy.values():
            worker.kill()
        self._idle, self._busy = [], {}

    @property
    def running(self) -> list[Job]:
        """Jobs that a worker has."""
        return [job for _, job, _ in self._busy.values()]

    def _start(self) -> None:
        while self._queue and (self._idle or self._unborn):
            if self._idle:
                worker = self._idle.pop()
            else:
                worker = _Worker(self._threads)
                self._unborn -= 1
            job = self._queue.popleft()
            try:
                future = worker.pool.submit(self._do, job)
            except BrokenProcessPool:  # it died while it had nothing to do: no run's fault
                worker.kill()
                self._unborn += 1
                self._queue.appendleft(job)
                continue
            self._busy[future] = (worker, job, time.perf_counter())


class _Worker:
    """A process, and a line to it: it ends when the line is cut, by `kill` or by the death of this process."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        theirs, self._line = context.Pipe(duplex=False)
        self.pool = ProcessPoolExecutor(1, context, initializer=_prepare, initargs=(theirs, threads))

    def dismiss(self) -> None:
        """When it has nothing to do."""
        self.pool.shutdown(wait=True)
        self._line.close()

    def kill(self) -> None:
        self._line.close()
        self.pool.shutdown(wait=True, cancel_futures=True)


def _prepare(line: Connection, threads: int) -> None:
    """In a new worker, before its first run."""
    threading.Thread(target=_end_with, args=(line,), daemon=True).start()
    os.environ.update(
        OMP_NUM_THREADS=str(threads),
        MKL_NUM_THREADS=str(threads),
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_DISABLE_PROGRESS_BARS="1",  # bars and warnings would be written across the table of the sweep
        HF_DATASETS_DISABLE_PROGRESS_BARS="1",
        TRANSFORMERS_VERBOSITY="error",
    )
    torch.set_num_threads(threads)


def _end_with(line: Connection) -> None:
    try:
        line.poll(None)
    finally:
        os._exit(1)


def make(resources: Resources) -> Executor:
    """The executor."""
    threads = resources.threads or max(1, (os.cpu_count() or 1) // resources.workers)
    return LocalExecutor(resources.workers, threads)
