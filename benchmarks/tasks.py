"""Tasks of texts: the seam at which data join `run`, `sweep` and `report`.

A benchmark is a folder `benchmarks/<name>/` whose file `tasks.py` calls `register` for each of its
tasks; nothing else needs to change. The files of all folders are read once, when a task is first
asked for.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

from datasets import DatasetDict

from ponder.errors import ArgumentError

__all__ = ["Metric", "Task", "get", "names", "register"]

Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]


@dataclass(frozen=True)
class Task(ABC):
    """The meaning of a task's labels, its metrics, and (by `load`) the place of its data.

    Args:
        name: Name of the task.
        metrics: Metrics whose mean is the score.
        label_names: Names of the classes, in the order of their numbers; empty for regression.
        label_range: Lowest and highest score of a regression task; None for classification.
        classes: Number of the classes, where their names stand in the data alone.
        outside: A class that is reported separately (out of scope), where there is one.
    """

    name: str
    metrics: tuple[Metric, ...]
    label_names: tuple[str, ...] = ()
    label_range: tuple[float, float] | None = None
    classes: int = 0
    outside: int | None = None

    @property
    def kind(self) -> Literal["classification", "regression"]:
        """Whether an answer is a class or a number."""
        return "regression" if self.label_range is not None else "classification"

    @property
    def num_labels(self) -> int:
        """Width of the head: the number of classes, or 1 for regression."""
        return len(self.label_names) or self.classes or 1

    @property
    def folder_option(self) -> str:
        """Option of the command line that names the folder of the data."""
        return "--glue-dir"

    @property
    @abstractmethod
    def dev_splits(self) -> tuple[str, ...]:
        """Names of the labelled splits that are reported, and never trained on."""

    @abstractmethod
    def load(self, folder: Path | None, only: Sequence[str] = ()) -> DatasetDict:
        """Read splits: columns `idx` (unique), `sentence1`, `sentence2` of a pair, and `label`.

        Args:
            folder: The folder of the data; None where the benchmark has another source.
            only: Names of the splits, `train` and those of `dev_splits` among them; all where
                empty.

        Raises:
            DataError: A file is missing, or of another form.
        """


_T = TypeVar("_T", bound=Task)
_REGISTRY: dict[str, Task] = {}


def register(task: _T) -> _T:
    """Make a task known by its name, which has to be free."""
    if _REGISTRY.setdefault(_key(task.name), task) is not task:
        raise ArgumentError(
            "task", expected="a free name", got=repr(task.name), remedy="Choose another name."
        )
    return task


def names() -> tuple[str, ...]:
    """Return the names of all tasks, GLUE's first."""
    _read_folders()
    return tuple(task.name for task in _REGISTRY.values())


def get(name: str) -> Task:
    """Find a task by its name; case and hyphens do not matter.

    Example:
        >>> get("sts-b").metrics
        ('pearson', 'spearman')
    """
    _read_folders()
    if _key(name) not in _REGISTRY:
        expected = f"one of {', '.join(names())}"
        raise ArgumentError(
            "task", expected=expected, got=repr(name), remedy="Pass one of these names."
        )
    return _REGISTRY[_key(name)]


@cache
def _read_folders() -> None:
    for path in sorted(Path(__file__).parent.glob("*/tasks.py")):
        importlib.import_module(f"benchmarks.{path.parent.name}.tasks")


def _key(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "").strip()
