"""A prior given by its probabilities."""

from __future__ import annotations

from dataclasses import dataclass

from ponder.priors.base import registry
from ponder.priors.tabulated import Tabulated

__all__ = ["Categorical"]


@registry.register("categorical")
@dataclass(frozen=True)
class Categorical(Tabulated):
    """The prior whose probabilities p(n) are given, one number a step.

    Args:
        probabilities: Non-negative and summing to 1; as many as the model has steps.

    Example:
        >>> Categorical((0.25, 0.75))(2).pmf
        tensor([0.2500, 0.7500])
    """
