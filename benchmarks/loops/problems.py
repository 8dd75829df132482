"""Puzzles: generators that make problems of a known difficulty, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

__all__ = ["PUZZLES", "Problems", "Puzzle"]

_MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))


@dataclass(frozen=True)
class Problems:
    """Problems of one level.

    Args:
        inputs: Inputs of the solver, batch first.
        labels: The class of every position, `(batch, positions)` long.
        level: The size of the problems.
    """

    inputs: Tensor
    labels: Tensor
    level: int

    def __len__(self) -> int:
        return self.labels.shape[0]

    def rows(self, start: int, count: int) -> Problems:
        """Return some of them."""
        part = slice(start, start + count)
        return Problems(self.inputs[part], self.labels[part], self.level)


@dataclass(frozen=True)
class Puzzle:
    """A puzzle, whose level is the size of a problem.

    Args:
        name: Its name.
        trained: Levels that solvers are trained on.
        levels: Levels that are reported; the last ones are harder than any trained on.
        channels: Channels of the inputs.
        dims: Spatial dimensions, 1 or 2.
        make: (level, count, generator) → inputs and labels.
    """

    name: str
    trained: tuple[int, ...]
    levels: tuple[int, ...]
    channels: int
    dims: int
    make: Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]

    def draw(self, level: int, count: int, seed: int) -> Problems:
        """Return `count` problems of one level; the same for the same level, count and seed.

        Example:
            >>> problems = PUZZLES["prefix-sums"].draw(4, count=1, seed=0)
            >>> bits = (problems.inputs[0, 0] + 0.5).long()
            >>> bool((bits.cumsum(0) % 2 == problems.labels[0]).all())
            True
        """
        generator = torch.Generator().manual_seed((seed * 1_000_003 + level) % 2**63)
        return Problems(*self.make(level, count, generator), level)


def _prefix_sums(level: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return bits `(batch, 1, bits)` in −½ and ½, and the parity of every prefix, y_i = (x_1 + … + x_i) mod 2.

    The last answer depends on the first bit, so that a network that looks at its neighbours needs steps in proportion
    to the number of bits (Schwarzschild et al. 2021, arXiv 2106.04537).
    """
    bits = torch.randint(0, 2, (count, level), generator=generator)
    return rearrange(bits, "batch bits -> batch 1 bits") - 0.5, bits.cumsum(-1) % 2


def _mazes(level: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return mazes `(batch, 6, n, n)` in −½ and ½, and whether each cell lies on the way from start to goal.

    A maze is a spanning tree of the grid, made by a randomised depth-first walk, so that the way is unique. Four
    channels say to which neighbours a cell is open, and two where start and goal are.
    """
    numbers = random.Random(int(torch.randint(0, 2**62, (), generator=generator)))
    inputs = torch.zeros(count, 6, level * level)
    labels = torch.zeros(count, level * level, dtype=torch.long)
    for row in range(count):
        openings = _walk(level, numbers)
        start, goal = numbers.sample(range(level * level), 2)
        for move, cells in enumerate(openings):
            inputs[row, move, list(cells)] = 1.0
        inputs[row, 4, start] = inputs[row, 5, goal] = 1.0
        labels[row, _way(openings, start, goal, level)] = 1
    grid = rearrange(inputs, "batch channels (row column) -> batch channels row column", row=level)
    return grid - 0.5, labels


def _walk(side: int, numbers: random.Random) -> list[list[int]]:
    """Return a spanning tree: for each move, the cells that are open that way."""
    openings: list[list[int]] = [[] for _ in _MOVES]
    seen = [False] * (side * side)
    stack = [numbers.randrange(side * side)]
    seen[stack[0]] = True
    while stack:
        row, column = divmod(stack[-1], side)
        free = [
            (move, cell)
            for move, (down, right) in enumerate(_MOVES)
            if 0 <= row + down < side and 0 <= column + right < side
            for cell in [(row + down) * side + column + right]
            if not seen[cell]
        ]
        if not free:
            stack.pop()
            continue
        move, cell = free[int(numbers.random() * len(free))]
        openings[move].append(stack[-1])
        openings[(move + 2) % 4].append(cell)
        seen[cell] = True
        stack.append(cell)
    return openings


def _way(openings: list[list[int]], start: int, goal: int, side: int) -> list[int]:
    """Return the cells from start to goal."""
    open_to = [set(cells) for cells in openings]
    came_from: dict[int, int] = {start: start}
    stack = [start]
    while goal not in came_from:
        cell = stack.pop()
        for move, (down, right) in enumerate(_MOVES):
            there = cell + down * side + right
            if cell in open_to[move] and there not in came_from:
                came_from[there] = cell
                stack.append(there)
    way = [goal]
    while way[-1] != start:
        way.append(came_from[way[-1]])
    return way


_BITS = (8, 16, 24, 32, 40, 48, 56, 64)
_SIDES = (5, 7, 9, 11, 14, 18)
PUZZLES = {
    puzzle.name: puzzle
    for puzzle in (
        Puzzle("prefix-sums", _BITS[:4], _BITS, 1, 1, _prefix_sums),
        Puzzle("mazes", _SIDES[:3], _SIDES, 6, 2, _mazes),
    )
}
