"""What a puzzle is: a generator that makes problems of a known difficulty, the same for the same seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ponder.errors import ArgumentError

__all__ = ["Problems", "Puzzle"]


@dataclass(frozen=True)
class Problems:
    """Problems of one level.

    Args:
        inputs: What the solver reads, batch first.
        labels: The class of every position, `(batch, positions)` long.
        difficulty: How hard each problem is, `(batch,)` long; the level itself, where all of a level are alike.
    """

    inputs: Tensor
    labels: Tensor
    difficulty: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]


class Puzzle(ABC):
    """Base of the puzzles; leaves say which levels exist and make problems of one level.

    The level is the size of a problem, or how much of it is missing: the number that makes it harder.
    """

    name: ClassVar[str]
    level_name: ClassVar[str]
    """What a level counts, for tables and axes."""
    trained_levels: ClassVar[tuple[int, ...]]
    """Levels that solvers are trained on."""
    levels: ClassVar[tuple[int, ...]]
    """Levels that are reported, as many problems of each; the last ones are harder than any trained on."""
    larger_level: ClassVar[int | None]
    """Twice the largest trained size; None where a puzzle has one size only."""
    least_level: ClassVar[int]
    greatest_level: ClassVar[int | None] = None

    def draw(self, level: int, count: int, seed: int) -> Problems:
        """`count` problems of one level; the same for the same level, count and seed.

        Raises:
            ArgumentError: The puzzle has no such level.
        """
        self.check_level(level)
        return self._draw(level, count, torch.Generator().manual_seed((seed * 1_000_003 + level) % 2**63))

    def practice(self, level: int, count: int, seed: int) -> Problems:
        """`count` problems of one level to train on; a puzzle that is slow to make may vary some that it keeps."""
        return self.draw(level, count, seed)

    def check_level(self, level: int) -> None:
        """Refuse levels that the puzzle does not have."""
        top = float("inf") if self.greatest_level is None else self.greatest_level
        if isinstance(level, bool) or not isinstance(level, int) or not self.least_level <= level <= top:
            limit = "" if self.greatest_level is None else f" to {self.greatest_level}"
            raise ArgumentError(
                "level",
                expected=f"a whole number of {self.level_name} from {self.least_level}{limit} for {self.name}",
                got=repr(level),
                remedy=f"Choose one of {', '.join(map(str, self.levels))}, say.",
            )

    def check_ready(self) -> None:
        """Make one problem: what is missing for that is told before anything is trained."""
        self.draw(self.least_level, 1, seed=0)

    @abstractmethod
    def _draw(self, level: int, count: int, generator: torch.Generator) -> Problems:
        """See `draw`; the level has been checked."""
