"""Mazes: the way from a start to a goal on an n × n grid (after Schwarzschild et al. 2021, arXiv 2106.04537).

A maze is a spanning tree of the grid, made by a randomised depth-first walk, so that the way is unique and is the
shortest. A cell is an input position: four channels say to which neighbours it is open, and two where start and goal
are. Nothing but the size is told by the tensor's shape.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from benchmarks.puzzles.puzzle import Problems, Puzzle

__all__ = ["Mazes", "path_lengths"]

_MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))
_CHANNELS = 6


class Mazes(Puzzle):
    """Mazes `(batch, 6, n, n)` in −½ and ½, and whether each cell lies on the way, row by row.

    The difficulty of a maze is the number of cells on its way.
    """

    name = "mazes"
    level_name = "cells a side"
    trained_levels = (5, 7, 9)
    levels = (5, 7, 9, 11, 14, 18)
    larger_level = 18
    least_level = 2

    def _draw(self, level: int, count: int, generator: torch.Generator) -> Problems:
        numbers = random.Random(int(torch.randint(0, 2**62, (), generator=generator)))
        inputs = torch.zeros(count, _CHANNELS, level * level)
        labels = torch.zeros(count, level * level, dtype=torch.long)
        for row in range(count):
            openings = _walk(level, numbers)
            start, goal = numbers.sample(range(level * level), 2)
            way = _way(openings, start, goal, level)
            for move, channel in enumerate(openings):
                inputs[row, move, channel] = 1.0
            inputs[row, 4, start] = inputs[row, 5, goal] = 1.0
            labels[row, way] = 1
        return Problems(inputs.unflatten(-1, (level, level)) - 0.5, labels, labels.sum(-1))


def path_lengths(problems: Problems) -> Tensor:
    """Cells on the way of each maze, `(batch,)`, found from the inputs by filling dead ends, not from the labels."""
    open_to = problems.inputs[:, :4] > 0
    ends = (problems.inputs[:, 4:6] > 0).any(1)
    alive = torch.ones_like(ends)
    while True:
        ways = torch.zeros_like(ends, dtype=torch.long)
        for move, (down, right) in enumerate(_MOVES):
            neighbour = torch.roll(alive, shifts=(-down, -right), dims=(1, 2))
            ways += (open_to[:, move] & neighbour).long()
        dead = alive & ~ends & (ways <= 1)
        if not bool(dead.any()):
            return alive.flatten(1).sum(1)
        alive = alive & ~dead


def _walk(side: int, numbers: random.Random) -> list[list[int]]:
    """A spanning tree: for each move, the cells that are open that way."""
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
    """The cells from start to goal."""
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
