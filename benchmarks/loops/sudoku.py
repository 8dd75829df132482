"""Sudokus with one solution, generated: a full grid, from which clues go while the solution stays the only one.

A split is a list of puzzles of its own; training varies its puzzles by the symmetries of sudoku (names of the symbols,
order of rows in a band and of bands, of columns in a stack and of stacks), which keep the solution unique.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Box", "draw_puzzles", "relations_of", "vary"]


@dataclass(frozen=True)
class Box:
    """The shape of a box: 2 × 2 for sudokus of 4 × 4, 2 × 3 for those of 6 × 6."""

    height: int
    width: int

    @property
    def side(self) -> int:
        """The number of cells in a row, of rows, and of symbols."""
        return self.height * self.width

    def box_of(self, row: int, column: int) -> int:
        """Return the number of the box that holds a cell."""
        return row // self.height * self.height + column // self.width


@cache
def _peers(box: Box) -> list[list[int]]:
    """Return, for each cell, the cells that share a row, a column or a box with it."""
    cells = [(row, column) for row in range(box.side) for column in range(box.side)]
    return [
        [
            other
            for other, (row, column) in enumerate(cells)
            if other != cell
            and (row == at[0] or column == at[1] or box.box_of(row, column) == box.box_of(*at))
        ]
        for cell, at in enumerate(cells)
    ]


def _count_solutions(grid: list[int], box: Box, most: int) -> int:
    """Return the number of solutions, `most` at most; the cell with the fewest candidates comes first.

    Each empty cell (0) is tried with the symbols that no peer has; a cell with none ends the branch.
    """
    peers = _peers(box)
    best = -1
    fewest = box.side + 1
    symbols: list[int] = []
    for cell, symbol in enumerate(grid):
        if symbol:
            continue
        taken = {grid[peer] for peer in peers[cell]}
        free = [candidate for candidate in range(1, box.side + 1) if candidate not in taken]
        if len(free) < fewest:
            best = cell
            fewest = len(free)
            symbols = free
            if fewest <= 1:
                break
    if best < 0:
        return 1
    count = 0
    for symbol in symbols:
        grid[best] = symbol
        count += _count_solutions(grid, box, most - count)
        if count >= most:
            break
    grid[best] = 0
    return count


def _full_grid(box: Box, numbers: random.Random) -> list[int]:
    """Return a solved grid, by trying symbols in random order."""
    grid = [0] * box.side**2
    peers = _peers(box)

    def fill(cell: int) -> bool:
        if cell == len(grid):
            return True
        taken = {grid[peer] for peer in peers[cell]}
        symbols = [symbol for symbol in range(1, box.side + 1) if symbol not in taken]
        numbers.shuffle(symbols)
        for symbol in symbols:
            grid[cell] = symbol
            if fill(cell + 1):
                return True
        grid[cell] = 0
        return False

    fill(0)
    return grid


def draw_puzzles(
    box: Box, count: int, clues: tuple[int, int], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return puzzles, 0 at empty cells, and their solutions, `(count, cells)` each; no puzzle comes twice.

    Args:
        box: The shape of a box.
        count: The number of puzzles.
        clues: Fewest and most clues; a puzzle whose clues cannot go so far keeps those that it needs.
        seed: Seed of the generator.
    """
    numbers = random.Random(seed)
    found = dict[tuple[int, ...], list[int]]()
    while len(found) < count:
        solution = _full_grid(box, numbers)
        puzzle = solution.copy()
        wanted = numbers.randint(*clues)
        order = list(range(len(puzzle)))
        numbers.shuffle(order)
        remaining = len(puzzle)
        for cell in order:
            if remaining == wanted:
                break
            symbol, puzzle[cell] = puzzle[cell], 0
            if _count_solutions(puzzle.copy(), box, 2) == 1:
                remaining -= 1
            else:
                puzzle[cell] = symbol
        found[tuple(puzzle)] = solution
    return np.array(list(found)), np.array(list(found.values()))


def _order(groups: int, size: int, generator: torch.Generator) -> Tensor:
    """Return a random order of `groups` groups of `size` lines each, in which groups stay together."""
    outer = torch.randperm(groups, generator=generator)
    inner = [torch.randperm(size, generator=generator) for _ in range(groups)]
    return torch.cat([group * size + inner[place] for place, group in enumerate(outer.tolist())])


def vary(puzzle: Tensor, solution: Tensor, box: Box, generator: torch.Generator) -> list[Tensor]:
    """Return puzzles and solutions, `(batch, cells)`, under one random symmetry for the batch, symbols for each row."""
    side = box.side
    batch = len(puzzle)
    rows = _order(side // box.height, box.height, generator)
    columns = _order(side // box.width, box.width, generator)
    names = torch.rand(batch, side, generator=generator).argsort(1) + 1
    names = torch.cat([torch.zeros(batch, 1, dtype=torch.long), names], dim=1)
    return [
        names.gather(1, grid.unflatten(1, (side, side))[:, rows][:, :, columns].flatten(1))
        for grid in (puzzle, solution)
    ]


def relations_of(box: Box) -> Tensor:
    """Return how two cells stand to each other, `(cells, cells)`: same, row, column, box (with either), or none."""
    side = box.side
    cells = torch.arange(side * side)
    row = cells // side
    column = cells % side
    inside = row // box.height * box.height + column // box.width
    same = [(each[:, None] == each[None]).long() for each in (row, column, inside)]
    return same[0] + 2 * same[1] + 4 * same[2]
