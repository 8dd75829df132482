"""Graded tasks, the registry that finds one by name, and their splits, generated on the spot.

The split of a text is a function of the text alone, so that the splits are disjoint, also between
different sizes and seeds. Equal arguments give equal rows, on every machine.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from benchmarks.files import DataError
from ponder.errors import ArgumentError

__all__ = ["SPLITS", "Example", "GradedTask", "get", "load", "names", "register", "traffic"]

SPLITS = ("train", "dev", "test")
_PATIENCE = 2000  # draws without a new text after which a grammar counts as exhausted


class Example(NamedTuple):
    """One generated text with its label, an index into the task's `labels`."""

    text: str
    label: int


@dataclass(frozen=True)
class GradedTask:
    """A text task whose generator is given the difficulty of the example.

    Args:
        name: Name in the registry.
        labels: Names of the classes, in the order of their indices.
        levels: Lowest and highest difficulty, both included.
        generate: Makes one example from a source of randomness and a difficulty. Every label must
            come up at every difficulty; how often does not matter, `load` balances them.

    Example:
        >>> from random import Random
        >>> get("negation").generate(Random(0), 0).label in (0, 1)
        True
    """

    name: str
    labels: tuple[str, ...]
    levels: tuple[int, int]
    generate: Callable[[Random, int], Example]

    @property
    def difficulties(self) -> range:
        """Every difficulty, in order."""
        return range(self.levels[0], self.levels[1] + 1)


_TASKS: dict[str, GradedTask] = {}


def register(task: GradedTask) -> GradedTask:
    """Make `task` known under its name, which must still be free, and return it."""
    if _TASKS.setdefault(task.name, task) is not task:
        raise ArgumentError(
            "task", expected="a free name", got=task.name, remedy="Choose another name."
        )
    return task


def names() -> list[str]:
    """Return the names of the graded tasks, sorted."""
    _read_kinds()
    return sorted(_TASKS)


def get(name: str) -> GradedTask:
    """Return the task called `name`."""
    if name not in names():
        raise ArgumentError(
            "name",
            expected=f"one of {', '.join(names())}",
            got=repr(name),
            remedy="Pick one of them.",
        )
    return _TASKS[name]


@cache
def _read_kinds() -> None:
    for path in sorted((Path(__file__).parent / "kinds").glob("[a-z]*.py")):
        importlib.import_module(f"benchmarks.graded.kinds.{path.stem}")


def load(
    name: str, *, seed: int = 0, train: int = 2400, dev: int = 240, test: int = 600
) -> DatasetDict:
    """Generate the splits of a graded task.

    The examples are spread over all pairs of difficulty and label as evenly as their number allows.

    Args:
        name: A name out of `names()`.
        seed: Another seed draws other texts.
        train: Number of training examples.
        dev: Number of examples to select an epoch or a threshold on.
        test: Number of examples to report.

    Returns:
        The splits with the columns `idx` (from 0 in each split), `sentence1`, `label` and
            `difficulty`.

    Example:
        >>> splits = load("negation", train=24, dev=12, test=12)
        >>> splits["test"].num_rows, sorted(set(splits["test"]["label"]))
        (12, [0, 1])
    """
    task = get(name)
    made = DatasetDict()
    cells = [
        (difficulty, label) for difficulty in task.difficulties for label in range(len(task.labels))
    ]
    for split, size in {"train": train, "dev": dev, "test": test}.items():
        counts = {
            cell: size // len(cells) + (number < size % len(cells))
            for number, cell in enumerate(cells)
        }
        made[split] = _generated(task, seed, split, counts)
    return made


def traffic(name: str, split: str, size: int, shares: Sequence[float], seed: int = 0) -> Dataset:
    """Generate texts with given shares of easy and hard ones; columns as for `load`.

    Args:
        name: A name out of `names()`.
        split: One of `SPLITS`.
        size: Number of texts, about: shares are rounded.
        shares: Share of the texts of each difficulty, from the lowest on; labels are balanced
            within each.
        seed: Another seed draws other texts.

    Example:
        >>> reviews = traffic("negation", "dev", 40, (0.6, 0.2, 0.1, 0.1))
        >>> list(reviews["difficulty"]).count(0)
        24
    """
    task = get(name)
    labels = len(task.labels)
    counts = {
        (difficulty, label): round(size * share / labels)
        for difficulty, share in zip(task.difficulties, shares, strict=True)
        for label in range(labels)
    }
    return _generated(task, seed, split, counts)


def _generated(
    task: GradedTask, seed: int, split: str, counts: Mapping[tuple[int, int], int]
) -> Dataset:
    """Return so many examples of each pair of difficulty and label, in a random order."""
    rows: list[tuple[int, Example]] = []
    for (difficulty, label), count in counts.items():
        rng = Random(f"{task.name}/{seed}/{split}/{difficulty}/{label}")
        rows += [
            (difficulty, example) for example in _cell(task, rng, split, difficulty, label, count)
        ]
    Random(f"{task.name}/{seed}/{split}").shuffle(rows)
    columns = {
        "idx": list(range(len(rows))),
        "sentence1": [example.text for _, example in rows],
        "label": [example.label for _, example in rows],
        "difficulty": [difficulty for difficulty, _ in rows],
    }
    label = ClassLabel(names=list(task.labels))
    number = Value("int64")
    features = Features(
        {"idx": number, "sentence1": Value("string"), "label": label, "difficulty": number}
    )
    return Dataset.from_dict(columns, features=features)


def _cell(
    task: GradedTask, rng: Random, split: str, difficulty: int, label: int, count: int
) -> list[Example]:
    """Return `count` different examples of one difficulty and label that belong to `split`."""
    found: dict[str, Example] = {}
    misses = 0
    while len(found) < count:
        example = task.generate(rng, difficulty)
        if (
            example.label == label
            and example.text not in found
            and _split_of(example.text) == split
        ):
            found[example.text] = example
            misses = 0
            continue
        misses += 1
        if misses > _PATIENCE:
            raise DataError(
                f"task {task.name!r}, split {split!r}: expected {count} different texts of "
                f"difficulty {difficulty} and label {task.labels[label]!r}; its grammar made "
                f"{len(found)}. Ask for fewer."
            )
    return list(found.values())


def _split_of(text: str) -> str:
    """Return the split of a text: three of five texts are in train, one in dev, one in test."""
    digest = hashlib.sha256(f"{text}\n".encode()).digest()
    return ("train", "train", "train", "dev", "test")[int.from_bytes(digest[:8], "big") % 5]
