"""Runs that only pretend, for workers: they import this file, which takes a second instead of ten."""

import multiprocessing
import os
import signal
from pathlib import Path

from benchmarks.glue.config import RunConfig
from benchmarks.glue.sweeping import executors
from benchmarks.glue.sweeping.executors import Job, Outcome


def pretend(job):
    """In a worker: the recipe's name says what happens."""
    import torch

    if job.config.recipe == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.config.recipe == "hangs":
        Path(job.out).write_text(str(os.getpid()))
        signal.pause()
    return Outcome("done", error=f"{os.getpid()} {torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']}")


def quick_workers(*imports):
    """Let workers fork from a process that has imported everything once, where by `spawn` each does so for itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(imports))
    executors.multiprocessing.get_context = lambda method: context


def job(recipe, out="."):
    return Job(RunConfig("RTE", recipe), None, Path(out), Path("."))
