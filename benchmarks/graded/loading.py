"""Balanced train, dev and test splits of a graded task, generated on the spot."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from random import Random

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from benchmarks.graded.base import Example, GradedTask, get
from ponder._utils.validation import check_int
from ponder.errors import ArgumentError, DataError

__all__ = ["DEV", "EPOCHS", "LEARNING_RATE", "SPLITS", "TEST", "TRAIN", "load", "traffic"]

TRAIN, DEV, TEST = 2400, 240, 600
SPLITS = ("train", "dev", "test")
EPOCHS = 3
LEARNING_RATE = 3e-4

_PATIENCE = 2000  # draws without a new text after which a grammar counts as exhausted


def load(name: str, *, seed: int = 0, train: int = TRAIN, dev: int = DEV, test: int = TEST) -> DatasetDict:
    """Generate the splits of a graded task; equal arguments give equal rows, on every machine.

    Which split a text may appear in is a function of the text alone, so that the splits are disjoint, also
    between different sizes and seeds: a model trained on one seed can be tested on another. The examples are
    spread over all pairs of difficulty and label as evenly as their number allows, so neither tells the other.

    Args:
        name: A name out of `names()`.
        seed: Another seed draws other texts.
        train: Number of training examples.
        dev: Number of examples to select an epoch or a threshold on.
        test: Number of examples to report.

    Returns:
        The splits `train`, `dev` and `test` with the columns `idx` (from 0 in each split), `sentence1`,
        `sentence2` where the task has pairs, `label`, and `difficulty`.

    Raises:
        ArgumentError: There is no such task, a size is below 1, or what its generator makes is no example of it.
        DataError: The task cannot make that many different texts.

    Example:
        >>> splits = load("negation", train=24, dev=12, test=12)
        >>> splits["test"].num_rows, sorted(set(splits["test"]["label"]))
        (12, [0, 1])
    """
    task = get(name)
    check_int("seed", seed, None)
    splits = DatasetDict()
    for split, size in {"train": train, "dev": dev, "test": test}.items():
        check_int(split, size, None, remedy=f"Pass {split}=600, say.")
        if size < 1:
            raise ArgumentError(
                split, expected="a number of examples >= 1", got=size, remedy="Ask for at least one example."
            )
        splits[split] = _generate_split(task, seed, split, size)
    return splits


def traffic(name: str, split: str, size: int, shares: Sequence[float], seed: int = 0) -> Dataset:
    """Different texts of which so many are easy and so many hard, as in real traffic; columns as for `load`.

    Args:
        name: A name out of `names()`.
        split: One of `SPLITS`; a text may appear in one of them only.
        size: Number of texts, about: shares are rounded.
        shares: Share of the texts of each difficulty, from the lowest on; labels are balanced within each.
        seed: Another seed draws other texts.

    Raises:
        ArgumentError: There is no such task, not a share for each difficulty, or its generator makes no example of it.
        DataError: The task cannot make that many different texts.

    Example:
        >>> reviews = traffic("negation", "dev", 40, (0.6, 0.2, 0.1, 0.1))
        >>> list(reviews["difficulty"]).count(0)
        24
    """
    task = get(name)
    if len(shares) != len(task.difficulties) or min(shares) < 0:
        raise ArgumentError(
            "shares",
            expected=f"one share ≥ 0 for each of {len(task.difficulties)} difficulties",
            got=list(shares),
            remedy="Pass (0.6, 0.25, 0.1, 0.05), say.",
        )
    labels = len(task.labels)
    counts = {
        (difficulty, label): round(size * share / labels)
        for difficulty, share in zip(task.difficulties, shares, strict=True)
        for label in range(labels)
    }
    return _generate_counts(task, seed, split, counts)


def _generate_split(task: GradedTask, seed: int, split: str, size: int) -> Dataset:
    cells = [(difficulty, label) for difficulty in task.difficulties for label in range(len(task.labels))]
    counts = {cell: size // len(cells) + (number < size % len(cells)) for number, cell in enumerate(cells)}
    return _generate_counts(task, seed, split, counts)


def _generate_counts(task: GradedTask, seed: int, split: str, counts: Mapping[tuple[int, int], int]) -> Dataset:
    """So many examples of each pair of difficulty and label, in a random order."""
    rows: list[tuple[int, Example]] = []
    for (difficulty, label), count in counts.items():
        rng = Random(f"{task.name}/{seed}/{split}/{difficulty}/{label}")
        rows += [(difficulty, example) for example in _generate_cell(task, rng, split, (difficulty, label), count)]
    Random(f"{task.name}/{seed}/{split}").shuffle(rows)
    columns: dict[str, list[object]] = {
        "idx": list(range(len(rows))),
        "sentence1": [example.sentence1 for _, example in rows],
        "sentence2": [example.sentence2 for _, example in rows],
        "label": [example.label for _, example in rows],
        "difficulty": [difficulty for difficulty, _ in rows],
    }
    features = {
        "idx": Value("int64"),
        "sentence1": Value("string"),
        "sentence2": Value("string"),
        "label": ClassLabel(names=list(task.labels)),
        "difficulty": Value("int64"),
    }
    if not task.pair:
        del columns["sentence2"], features["sentence2"]
    return Dataset.from_dict(columns, features=Features(features))


def _generate_cell(task: GradedTask, rng: Random, split: str, cell: tuple[int, int], count: int) -> list[Example]:
    """`count` different examples of one difficulty and label, all of texts that belong to `split`."""
    difficulty, label = cell
    found: dict[tuple[str, str | None], Example] = {}
    misses = 0
    while len(found) < count:
        example = task.draw(rng, difficulty)
        texts = (example.sentence1, example.sentence2)
        if example.label == label and texts not in found and _split_of(*texts) == split:
            found[texts], misses = example, 0
        elif (misses := misses + 1) > _PATIENCE:
            raise DataError(
                f"task {task.name!r}, split {split!r}: expected {count} different texts of difficulty "
                f"{difficulty} with label {task.labels[label]!r}; its grammar made {len(found)}. "
                "Ask for fewer examples, or give the grammar more words."
            )
    return list(found.values())


def _split_of(sentence1: str, sentence2: str | None) -> str:
    """The one split that a text may appear in: three texts of five train, one is dev, one is test."""
    digest = hashlib.sha256(f"{sentence1}\n{sentence2 or ''}".encode()).digest()
    return ("train", "train", "train", "dev", "test")[int.from_bytes(digest[:8], "big") % 5]
