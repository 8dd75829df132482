"""A weighted sum of objectives, written `a + 0.5 * b`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from operator import add

from torch import Tensor

from ponder.errors import ArgumentError
from ponder.objectives.base import Objective, Unrolled, registry

__all__ = ["Weighted"]


@registry.register("weighted")
@dataclass(frozen=True)
class Weighted(Objective):
    """Σ_k w_k L_k.

    Args:
        objectives: The terms.
        weights: One finite number for each.
    """

    objectives: tuple[Objective, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "objectives", tuple(self.objectives))
        object.__setattr__(self, "weights", tuple(float(weight) for weight in self.weights))
        if len(self.weights) != len(self.objectives) or not self.objectives:
            raise ArgumentError(
                "weights",
                expected=f"one for each of {len(self.objectives)} objectives (at least one)",
                got=self.weights,
                remedy="Write sums as a + 0.5 * b.",
            )
        if not all(math.isfinite(weight) for weight in self.weights):
            raise ArgumentError("weights", expected="finite numbers", got=self.weights, remedy="Check them.")

    @classmethod
    def sum(cls, *objectives: Objective) -> Weighted:
        """Add objectives up, flattening sums."""
        terms: list[tuple[Objective, float]] = []
        for objective in objectives:
            if isinstance(objective, cls):
                terms += zip(objective.objectives, objective.weights, strict=True)
            else:
                terms.append((objective, 1.0))
        return cls(tuple(term for term, _ in terms), tuple(weight for _, weight in terms))

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What any of the terms reads."""
        return frozenset[str]().union(*(objective.needs for objective in self.objectives))

    @property
    def truncatable(self) -> bool:  # type: ignore[override]
        """Whether all of the terms are."""
        return all(objective.truncatable for objective in self.objectives)

    @property
    def reads_whole_batch(self) -> bool:  # type: ignore[override]
        """Whether any of the terms does."""
        return any(objective.reads_whole_batch for objective in self.objectives)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        terms = zip(self.objectives, self.weights, strict=True)
        return reduce(add, (weight * objective.per_example(unrolled) for objective, weight in terms))

    def __rmul__(self, weight: float) -> Weighted:
        """Every term, weighted."""
        return Weighted(self.objectives, tuple(weight * own for own in self.weights))
