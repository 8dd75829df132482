"""Executors: where the runs of a sweep are done. Each is one file, imported only when it is asked for."""

from benchmarks.glue.sweeping.executors.base import Executor, Job, Outcome, execute
from benchmarks.glue.sweeping.executors.choice import get, names

__all__ = ["Executor", "Job", "Outcome", "execute", "get", "names"]
