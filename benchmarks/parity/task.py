"""The parity task: is the number of ones among the elements of a vector odd?

Graves 2016, Section 3.1; Banino et al. 2021, Section 3.1. A vector has `size` elements, of which k, drawn uniformly
from a range, are 1 or −1 and the others 0, in random places. The answer is 1 where the number of ones is odd. Elements
that are −1 do not count: they only hide the ones. The difficulty of a vector is k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.errors import ArgumentError

__all__ = ["Range", "Sample", "Scene", "draw"]


@dataclass(frozen=True)
class Range:
    """Difficulties from `low` to `high`, both included.

    Args:
        low: Fewest elements that are not zero, ≥ 1.
        high: Most.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise ArgumentError(
                "range", expected="1 ≤ low ≤ high", got=f"{self.low}–{self.high}", remedy="Pass Range(1, 8), say."
            )

    def __str__(self) -> str:
        return f"{self.low}–{self.high}"


@dataclass(frozen=True)
class Scene:
    """What is trained on, and what is asked.

    Args:
        name: ``"interpolation"`` or ``"extrapolation"``.
        size: Elements of a vector.
        train: Difficulties in training, and of the validation set.
        test: Difficulties of the reported set.
    """

    name: str
    size: int
    train: Range
    test: Range

    def __post_init__(self) -> None:
        most = max(self.train.high, self.test.high)
        if most > self.size:
            raise ArgumentError(
                "size", expected=f"at least {most} elements, the greatest difficulty", got=self.size, remedy="Raise it."
            )


@dataclass(frozen=True)
class Sample:
    """Vectors with their labels and difficulties.

    Args:
        inputs: Elements −1, 0 and 1, `(batch, size)` float32.
        labels: Parity of the number of ones, `(batch,)` long.
        difficulty: Number of elements that are not zero, `(batch,)` long.
    """

    inputs: Tensor
    labels: Tensor
    difficulty: Tensor

    def __len__(self) -> int:
        return self.inputs.shape[0]


def draw(size: int, difficulties: Range, count: int, generator: torch.Generator) -> Sample:
    """Draw `count` vectors of `size` elements, with replacement.

    Example:
        >>> sample = draw(6, Range(2, 2), 4, torch.Generator().manual_seed(0))
        >>> sample.inputs.abs().sum(-1)
        tensor([2., 2., 2., 2.])
        >>> bool(((sample.inputs == 1).sum(-1) % 2 == sample.labels).all())
        True
    """
    difficulty = torch.randint(difficulties.low, difficulties.high + 1, (count,), generator=generator)
    order = torch.rand(count, size, generator=generator).argsort(-1)  # a random permutation of the places
    signs = torch.randint(0, 2, (count, size), generator=generator) * 2 - 1
    inputs = torch.where(order < difficulty.unsqueeze(-1), signs, 0)
    return Sample(inputs.float(), (inputs == 1).sum(-1) % 2, difficulty)
