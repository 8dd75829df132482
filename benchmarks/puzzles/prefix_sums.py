"""Prefix sums: the parity of all bits so far, at every bit (Schwarzschild et al. 2021, arXiv 2106.04537).

y_i = (x_1 + … + x_i) mod 2. The last answer depends on the first bit, so that a network that looks at its neighbours
needs steps in proportion to the number of bits.
"""

from __future__ import annotations

import torch

from benchmarks.puzzles.puzzle import Problems, Puzzle

__all__ = ["PrefixSums"]


class PrefixSums(Puzzle):
    """Bits `(batch, 1, bits)` in −½ and ½, and the parity of every prefix.

    Example:
        >>> problems = PrefixSums().draw(4, count=1, seed=0)
        >>> bits = (problems.inputs[0, 0] + 0.5).long()
        >>> bool((bits.cumsum(0) % 2 == problems.labels[0]).all())
        True
    """

    name = "prefix-sums"
    level_name = "bits"
    trained_levels = (8, 16, 24, 32)
    levels = (8, 16, 24, 32, 40, 48, 56, 64)
    larger_level = 64
    least_level = 1

    def _draw(self, level: int, count: int, generator: torch.Generator) -> Problems:
        bits = torch.randint(0, 2, (count, level), generator=generator)
        return Problems(bits.unsqueeze(1) - 0.5, bits.cumsum(-1) % 2, torch.full((count,), level))
