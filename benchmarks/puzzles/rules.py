"""Ways to stop the looped solver, and how one of each family is chosen: on problems that are not reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ponder import policies
from ponder.policies import ExitPolicy, Gate

__all__ = ["FAMILIES", "LEAST_STEPS", "SLACK", "Score", "cheapest", "gate_rules"]

SLACK = 0.002
"""How much less accurate than the best depth a shallower one may be on validation and still count as its equal.

Rules get no such room: they are to be as accurate as the fixed depth that is chosen so.
"""


_PATIENCE = range(1, 9)
LEAST_STEPS = max(_PATIENCE) + 1
"""Steps of the shallowest run in which every rule could stop."""
_SURE = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999)
FAMILIES: Mapping[str, Sequence[ExitPolicy]] = {
    "converged": [policies.Converged(patience=patience) for patience in _PATIENCE],
    "confidence": [policies.Confidence(threshold) for threshold in _SURE],
    "converged and confident": [
        policies.Converged(patience=patience) & policies.Confidence(threshold)
        for patience in (1, 2)
        for threshold in _SURE
    ],
}


_DOUBT = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0001)


def gate_rules(gates: Sequence[Gate]) -> list[ExitPolicy]:
    """Gates with every threshold: the probability, below which a problem leaves, that going on pays."""
    return [replace(gate, threshold=threshold) for gate in gates for threshold in _DOUBT]


@dataclass(frozen=True)
class Score:
    """How a rule does on a set.

    Args:
        right: Whether the answer at the exit is right, all positions of it, `(problems,)` bool.
        steps: The step at which each problem stopped, `(problems,)` long.
        levels: Level of each problem, `(problems,)` long.
    """

    right: Tensor
    steps: Tensor
    levels: Tensor

    @property
    def accuracy(self) -> float:
        """Share of problems solved."""
        return float(self.right.double().mean())

    @property
    def mean_steps(self) -> float:
        """Mean exit step."""
        return float(self.steps.double().mean())

    @staticmethod
    def cat(scores: Sequence[Score]) -> Score:
        """Several levels together."""
        return Score(*(torch.cat(parts) for parts in zip(*((s.right, s.steps, s.levels) for s in scores), strict=True)))


def cheapest(scores: Sequence[Score], wanted: float) -> int:
    """Which one takes the fewest steps of those that reach an accuracy; the most accurate where none does."""
    able = [index for index, score in enumerate(scores) if score.accuracy >= wanted]
    if able:
        return min(able, key=lambda index: scores[index].mean_steps)
    return max(range(len(scores)), key=lambda index: (scores[index].accuracy, -scores[index].mean_steps))
