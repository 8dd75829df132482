"""The tasks of LoopBench: inputs, labels and the relations of positions, the same for the same seed.

Every task answers one class at each position. A model sees features `(batch, length, features)` and knows how two
positions stand to each other by a number, `(length, length)`; attention learns a bias for each number and head.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.loops.problems import PUZZLES
from benchmarks.loops.sudoku import Box, draw_puzzles, relations_of, vary

__all__ = ["TASKS", "TEXTS", "Problems", "Task"]

TEXTS = Path("../shared/text")
"""The folder of the texts of the character model, which is skipped if it is missing."""
_SPLITS = {"train": 0, "validation": 1, "calibration": 2, "test": 3}
SUDOKUS = {4: 1024, 6: 2048}
"""Different puzzles of a split, by the side of a grid."""
_FAR = 4  # distances beyond this one are one relation


@dataclass(frozen=True)
class Problems:
    """Some problems of a task.

    Args:
        inputs: Features, `(batch, length, features)`.
        labels: The class of every position, `(batch, length)`; −100 where nothing is asked.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Task:
    """A task.

    Args:
        name: Its name.
        length: Positions of a problem.
        features: Features of a position.
        classes: Classes of an answer.
        num_steps: N, the steps of a run at full depth.
        draw: (split, count, seed) → problems; training draws anew for each seed.
        relations: How positions stand to one another, `(length, length)` long.
        causal: Whether a position attends to itself and to those before it alone.
        layers: Layers of one step.
        width: Width of the model.
        neighbours: Whether each head attends to one relation at first, head k to relation k, and not to any.
        updates: Updates of the weights: those of the trunk, and a sixth of each learner's own.
        own_updates: Updates of their own for learners whose gate is trained in; a sixth of
            `updates` if None.
        batch_size: Problems of an update.
    """

    name: str
    length: int
    features: int
    classes: int
    num_steps: int
    draw: Callable[[str, int, int], Problems]
    relations: Callable[[], Tensor]
    causal: bool = False
    layers: int = 1
    width: int = 64
    neighbours: bool = False
    updates: int = 900
    own_updates: int | None = None
    batch_size: int = 64


def _generator(split: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + _SPLITS[split]) % 2**63)


def _sudoku(box: Box, clues: tuple[int, int]) -> Callable[[str, int, int], Problems]:
    """Return the generator of a size of sudoku; cells that are given are answered too, and are easy."""

    @cache
    def puzzles(split: str, count: int) -> tuple[Tensor, Tensor]:
        # The splits follow one another in one list of different puzzles.
        grids, solutions = draw_puzzles(box, 4 * count, clues, seed=17)
        part = slice(_SPLITS[split] * count, (_SPLITS[split] + 1) * count)
        return torch.from_numpy(grids[part]), torch.from_numpy(solutions[part])

    def draw(split: str, count: int, seed: int) -> Problems:
        grids, solutions = puzzles(split, SUDOKUS[box.side])
        if split == "train":
            generator = _generator(split, seed)
            rows = torch.randint(len(grids), (count,), generator=generator)
            grids, solutions = vary(grids[rows], solutions[rows], box, generator)
        inputs = F.one_hot(grids[:count], box.side + 1).float()
        return Problems(inputs, solutions[:count] - 1)

    return draw


def _running_sums(modulus: int, length: int) -> Callable[[str, int, int], Problems]:
    """Return the generator of running sums, y_i = (x_1 + … + x_i) mod m; m = 2 is prefix sums."""

    def draw(split: str, count: int, seed: int) -> Problems:
        digits = torch.randint(modulus, (count, length), generator=_generator(split, seed))
        return Problems(F.one_hot(digits, modulus).float(), digits.cumsum(1) % modulus)

    return draw


def _mazes(side: int) -> Callable[[str, int, int], Problems]:
    """Return the generator of mazes: whether each cell lies on the way from start to goal."""

    def draw(split: str, count: int, seed: int) -> Problems:
        mazes = PUZZLES["mazes"].draw(side, count, seed * 4 + _SPLITS[split])
        return Problems(mazes.inputs.flatten(2).transpose(1, 2) + 0.5, mazes.labels)

    return draw


@cache
def _characters(split: str) -> tuple[Tensor, int]:
    """Return the texts of a split as one line of character numbers, and how many characters there are."""
    texts = []
    for name in ("train", "test"):
        with (TEXTS / "banking77" / f"{name}.csv").open(encoding="utf-8") as file:
            texts.append("\n".join(row["text"].strip() for row in csv.DictReader(file)))
    known = sorted({character for character in "".join(texts) if ord(character) < 127})
    numbers = {character: place for place, character in enumerate(known)}
    text = texts[0] if split == "train" else texts[1]
    line = torch.tensor([numbers[character] for character in text if character in numbers])
    if split != "train":  # three parts, one after another
        line = line.chunk(3)[_SPLITS[split] - 1]
    return line, len(known)


def _next_character(length: int, features: int) -> Callable[[str, int, int], Problems]:
    """Return the generator of texts: the next character at every position."""

    def draw(split: str, count: int, seed: int) -> Problems:
        line, known = _characters(split)
        assert known <= features
        generator = _generator(split, seed)
        starts = torch.randint(len(line) - length - 1, (count, 1), generator=generator)
        windows = line[starts + torch.arange(length + 1)]
        return Problems(F.one_hot(windows[:, :-1], features).float(), windows[:, 1:])

    return draw


def _distances(length: int) -> Tensor:
    """Return distances in a sequence, far ones alike, from 0."""
    places = torch.arange(length)
    return (places[None] - places[:, None]).clamp(-_FAR, _FAR) + _FAR


def _neighbours(side: int) -> Tensor:
    """Return how the cells of a grid stand to one another: 0 to 3 for the four neighbours, 4 the same, 5 any other."""
    cells = torch.arange(side * side)
    down, right = (each[None] - each[:, None] for each in (cells // side, cells % side))
    relations = torch.full(down.shape, 5)
    for number, (one, other) in enumerate(((0, 1), (1, 0), (0, -1), (-1, 0), (0, 0))):
        relations[(down == one) & (right == other)] = number
    return relations


_SMALL = Box(2, 2)
_LARGE = Box(2, 3)
TASKS = {
    task.name: task
    for task in (
        Task(
            name="sudoku-4x4",
            length=16,
            features=5,
            classes=4,
            num_steps=12,
            draw=_sudoku(_SMALL, (4, 8)),
            relations=lambda: relations_of(_SMALL),
            width=128,
        ),
        Task(
            name="sudoku-6x6",
            length=36,
            features=7,
            classes=6,
            num_steps=16,
            draw=_sudoku(_LARGE, (10, 18)),
            relations=lambda: relations_of(_LARGE),
        ),
        Task(
            name="prefix-sums",
            length=16,
            features=2,
            classes=2,
            num_steps=16,
            draw=_running_sums(2, 16),
            relations=lambda: _distances(16),
        ),
        Task(
            name="modular-sums",
            length=16,
            features=5,
            classes=5,
            num_steps=16,
            draw=_running_sums(5, 16),
            relations=lambda: _distances(16),
        ),
        Task(
            name="mazes",
            length=25,
            features=6,
            classes=2,
            num_steps=12,
            draw=_mazes(5),
            relations=lambda: _neighbours(5),
            neighbours=True,
            updates=1500,
        ),
        Task(
            name="characters",
            length=64,
            features=96,
            classes=96,
            num_steps=6,
            draw=_next_character(64, 96),
            relations=lambda: _distances(64),
            causal=True,
            layers=2,
            batch_size=16,
        ),
    )
}
