"""What a graded task is, and the registry that finds one by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import NamedTuple

from benchmarks.graded import kinds
from ponder._utils.validation import check_type
from ponder.errors import ArgumentError

__all__ = ["Example", "GradedTask", "get", "names", "register"]


class Example(NamedTuple):
    """One generated text with its label.

    Attributes:
        sentence1: The text.
        sentence2: The second text of a pair task; None where the task judges single sentences.
        label: Index into the task's `labels`.
    """

    sentence1: str
    sentence2: str | None
    label: int


@dataclass(frozen=True)
class GradedTask:
    """A text task whose generator is told how hard the example has to be.

    Args:
        name: Name in the registry.
        labels: Names of the classes, in the order of their indices.
        difficulty: What the difficulty counts, for the axis of a figure.
        levels: Lowest and highest difficulty, both included.
        generate: Makes one example from a source of randomness and a difficulty. Every label must come up
            at every difficulty; how often does not matter, `load` balances them.
        pair: Whether the examples have a second sentence.
        demo_examples: Training examples from which the demo learns it.

    Example:
        >>> from random import Random
        >>> task = get("negation")
        >>> task.generate(Random(0), 0).label in (0, 1)
        True
    """

    name: str
    labels: tuple[str, ...]
    difficulty: str
    levels: tuple[int, int]
    generate: Callable[[Random, int], Example]
    pair: bool = False
    demo_examples: int = 2000

    def __post_init__(self) -> None:
        """Refuse a task that cannot be balanced or has no difficulty."""
        if len(set(self.labels)) < 2 or len(set(self.labels)) < len(self.labels):
            raise ArgumentError(
                "labels",
                expected="two or more different names",
                got=repr(self.labels),
                remedy="Name every class once.",
            )
        if not 0 <= self.levels[0] <= self.levels[1]:
            raise ArgumentError(
                "levels",
                expected="(lowest, highest) with 0 <= lowest <= highest",
                got=repr(self.levels),
                remedy="Pass for example (0, 6).",
            )

    @property
    def difficulties(self) -> range:
        """Every difficulty, in order."""
        return range(self.levels[0], self.levels[1] + 1)

    def draw(self, rng: Random, difficulty: int) -> Example:
        """One example of `generate`, which is refused where it is none of this task."""
        source = f"generate of task {self.name!r}"
        example = self.generate(rng, difficulty)
        check_type(source, example, Example, remedy=f"Return {self._form}.")
        first, second, label = example
        if not isinstance(first, str) or not (isinstance(second, str) if self.pair else second is None):
            raise ArgumentError(
                source,
                expected="two texts, as pair=True says" if self.pair else "one text and None, as pair=False says",
                got=f"{first!r} and {second!r}, at difficulty {difficulty}",
                remedy=f"Return {self._form}.",
            )
        if label not in range(len(self.labels)):
            raise ArgumentError(
                source,
                expected=f"a label from 0 to {len(self.labels) - 1}, the index of one of {', '.join(self.labels)}",
                got=f"{label!r}, at difficulty {difficulty}",
                remedy="Return such an index, or name all classes in labels.",
            )
        return example

    @property
    def _form(self) -> str:
        return f"Example(text, {'another' if self.pair else 'None'}, label)"


_TASKS: dict[str, GradedTask] = {}


def register(task: GradedTask) -> GradedTask:
    """Make `task` known under its name, which must still be free, and return it."""
    if _TASKS.setdefault(task.name, task) is not task:
        raise ArgumentError(
            "task",
            expected="a task with a name that is still free",
            got=repr(task.name),
            remedy=f"Choose a name other than {', '.join(sorted(_TASKS))}.",
        )
    return task


def names() -> list[str]:
    """Names of the graded tasks, sorted."""
    _read_kinds()
    return sorted(_TASKS)


def get(name: str) -> GradedTask:
    """The task called `name`."""
    _read_kinds()
    if name not in _TASKS:
        raise ArgumentError(
            "name",
            expected=f"one of {', '.join(names())}",
            got=repr(name),
            remedy="Pick one of these, or register a task of your own.",
        )
    return _TASKS[name]


@cache
def _read_kinds() -> None:
    """Import every file of `benchmarks.graded.kinds`, each of which registers its task."""
    for module in pkgutil.iter_modules(kinds.__path__, f"{kinds.__name__}."):
        importlib.import_module(module.name)
