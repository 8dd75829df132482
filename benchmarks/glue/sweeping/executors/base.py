"""What an executor is, and what it executes."""

from __future__ import annotations

import time
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from benchmarks.glue.config import RunConfig
from ponder.errors import ArgumentError

__all__ = ["Executor", "Job", "Outcome", "Resources", "execute"]


@dataclass(frozen=True)
class Job:
    """One run and its places.

    Args:
        config: The run.
        glue_dir: GLUE's data; None for the hub.
        out: Folder of the result.
        work: Folder of checkpoints.
        stages: Folder of first stages that runs share.
        models: Folder in which the trained model is kept.
        wait: Where another process is at this run, wait for it, or come back as ``"busy"``.
    """

    config: RunConfig
    glue_dir: Path | None
    out: Path
    work: Path
    stages: Path | None = None
    models: Path | None = None
    wait: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Args:
        job: The job.
        status: ``"done"``, ``"failed"``, or ``"busy"`` where another process is at it.
        seconds: How long it took.
        error: What went wrong, in one line.
        details: The traceback.
    """

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
        """End what still runs."""

    @property
    @abstractmethod
    def running(self) -> list[Job]:
        """Jobs that are at work now."""

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def execute(job: Job) -> Outcome:
    """Do a job in this process; whatever it raises is its outcome."""
    from benchmarks.glue.locks import BusyError
    from benchmarks.glue.run import run

    started = time.perf_counter()
    try:
        places = {"stages": job.stages, "models": job.models}
        run(job.config, job.glue_dir, job.out, job.work, **places, wait=job.wait, strict=False, progress=False)
    except BusyError:
        return Outcome(job, "busy")
    except Exception as error:  # out of memory, bad data, a full disk: the other runs go on
        _free_memory()
        line = f"{type(error).__name__}: {error}".strip()
        return Outcome(job, "failed", time.perf_counter() - started, line, traceback.format_exc())
    return Outcome(job, "done", time.perf_counter() - started)


def _free_memory() -> None:
    """After an error that may have been for lack of it."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
