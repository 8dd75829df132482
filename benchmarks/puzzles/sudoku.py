"""Sudoku of 4 × 4 and of 9 × 9 cells, from `reasoning-gym` (extra `puzzles`).

A problem has one solution. How hard it is is told by the number of empty cells, which is its level. To make one takes
longer than to learn from it, so training varies some hundred problems of each level by what leaves a sudoku a sudoku:
other digits, rows and columns in another order, and the mirror image (as HRM and TRM do).
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import torch

from benchmarks.puzzles.puzzle import Problems, Puzzle
from ponder.errors import DataError

__all__ = ["MiniSudoku", "Sudoku"]

_SEED = 9_000_011


class _Sudoku(Puzzle):
    """Digits `(batch, cells)` long, 0 where empty, and the digit of every cell, counted from 0."""

    level_name = "empty cells"
    larger_level = None
    least_level = 1
    dataset: ClassVar[str]
    side: ClassVar[int]
    kept: ClassVar[int]
    """Problems of each level that training varies."""

    def _draw(self, level: int, count: int, generator: torch.Generator) -> Problems:
        seed = int(torch.randint(0, 2**31, (), generator=generator))
        source = _reasoning_gym(self.name).create_dataset(
            self.dataset, seed=seed, size=count, min_empty=level, max_empty=level
        )
        made = [source[row]["metadata"] for row in range(count)]
        puzzles = torch.tensor([row["puzzle"] for row in made]).flatten(1)
        solutions = torch.tensor([row["solution"] for row in made]).flatten(1)
        return Problems(puzzles, solutions - 1, (puzzles == 0).sum(1))

    def practice(self, level: int, count: int, seed: int) -> Problems:
        kept = _kept(self, level)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(kept), (count,), generator=generator)
        cells = torch.stack([_cells_in_another_order(self.side, generator) for _ in range(count)])
        digits = torch.stack([torch.randperm(self.side, generator=generator) for _ in range(count)])
        labels = digits.gather(1, kept.labels[rows].gather(1, cells))
        inputs = torch.where(kept.inputs[rows].gather(1, cells) > 0, labels + 1, 0)
        return Problems(inputs, labels, kept.difficulty[rows])


class MiniSudoku(_Sudoku):
    """4 × 4 cells, four boxes of 2 × 2."""

    name = "sudoku-4x4"
    dataset = "mini_sudoku"
    side = 4
    kept = 1000
    trained_levels = (4, 5, 6, 7, 8, 9)
    levels = (4, 5, 6, 7, 8, 9, 10, 11, 12)
    greatest_level = 12


class Sudoku(_Sudoku):
    """9 × 9 cells, nine boxes of 3 × 3, with many givens."""

    name = "sudoku-9x9"
    dataset = "sudoku"
    side = 9
    kept = 250
    trained_levels = (10, 15, 20, 25, 30)
    levels = (10, 15, 20, 25, 30, 35, 40)
    greatest_level = 64


@cache
def _kept(puzzle: _Sudoku, level: int) -> Problems:
    """The problems that training varies; of a seed that no set which chooses or reports has."""
    return puzzle.draw(level, puzzle.kept, _SEED)


def _cells_in_another_order(side: int, generator: torch.Generator) -> torch.Tensor:
    """Which cell comes to each place, `(side²,)`: bands, lines within bands, and perhaps the mirror image."""
    box = round(side**0.5)

    def lines() -> torch.Tensor:
        bands = torch.randperm(box, generator=generator).unsqueeze(1)
        within = torch.stack([torch.randperm(box, generator=generator) for _ in range(box)])
        ordered: torch.Tensor = bands * box + within
        return ordered.flatten()

    cells = lines().unsqueeze(1) * side + lines()
    mirrored = bool(torch.randint(2, (), generator=generator))
    return (cells.T if mirrored else cells).flatten()


def _reasoning_gym(puzzle: str) -> Any:
    try:
        import reasoning_gym  # the one place that needs it; other puzzles run without
    except ImportError as error:
        raise DataError(
            f"{puzzle}: expected the package reasoning-gym, which makes these problems; it is not installed. "
            f"Run `pip install ponder-torch[puzzles]`, or choose prefix-sums or mazes, which need nothing."
        ) from error
    return reasoning_gym
