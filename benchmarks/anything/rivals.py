"""Rules of the literature that stop a vote, as policies: the same test certifies them as ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaln, gammaln

from ponder import policies

__all__ = ["AdaptiveConsistency", "InstancePruning"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Overtaking(policies.ThresholdPolicy):
    """Stop a vote once the first class is unlikely to lose its lead to the second.

    Args:
        threshold: The probability below which a row exits.
        members: Members of a step.
    """

    threshold: float
    members: int = 1
    needs = frozenset({"output"})
    tunable = policies.Threshold("threshold", "below")

    def statistic(self, step: policies.StepView, state: Any) -> tuple[Any, Any]:
        """Return the probability of each row, `(rows,)`."""
        taken = int(step.index[0]) * self.members if len(step.index) else 0
        counts = np.rint(np.exp(np.asarray(step.output, dtype=np.float64)) * taken)
        first, second = np.sort(counts, axis=-1)[:, :-3:-1].T
        pairs, places = np.unique(np.stack([first, second], 1), axis=0, return_inverse=True)
        remaining = step.num_steps * self.members - taken
        return self.overtaking(pairs[:, 0], pairs[:, 1], remaining)[places.ravel()], state

    def overtaking(self, first: Floats, second: Floats, remaining: int) -> Floats:
        """Return the probabilities of pairs of counts, `(pairs,)`."""
        raise NotImplementedError


@policies.register("adaptive-consistency")
@dataclass(frozen=True)
class AdaptiveConsistency(_Overtaking):
    """P(share of the first < ½) under Beta(v₁ + 1, v₂ + 1): Aggarwal et al. 2023, Section 3.

    They stop when the leader stays with a probability above 0.95.
    """

    def overtaking(self, first: Floats, second: Floats, remaining: int) -> Floats:
        """Return the probabilities of pairs of counts, `(pairs,)`."""
        found: Floats = betainc(first + 1, second + 1, 0.5)
        return found


@policies.register("instance-pruning")
@dataclass(frozen=True)
class InstancePruning(_Overtaking):
    """P(the votes that remain change the majority): Hernández-Lobato et al. 2009, Section 3.

    Of R remaining votes the first class gets K, which is beta-binomial with v₁ + 1 and v₂ + 1 after
    a uniform prior; the majority changes if v₁ + K ≤ v₂ + R − K. They stop when it stays with a
    probability above 0.99.
    """

    def overtaking(self, first: Floats, second: Floats, remaining: int) -> Floats:
        """Return the probabilities of pairs of counts, `(pairs,)`."""
        got = np.arange(remaining + 1.0)
        ways = gammaln(remaining + 1) - gammaln(got + 1) - gammaln(remaining - got + 1)
        above = betaln(first[:, None] + got + 1, second[:, None] + remaining - got + 1)
        logarithms = ways + above - betaln(first + 1, second + 1)[:, None]
        changes = first[:, None] + got <= second[:, None] + remaining - got
        found: Floats = (np.exp(logarithms) * changes).sum(axis=1)
        return found


PUBLISHED: dict[str, Callable[[], policies.ExitPolicy]] = {
    "Beta rule, 0.95": lambda: AdaptiveConsistency(0.05),
    "pruning, 0.99": lambda: InstancePruning(0.01),
}
"""The rules as their authors set them."""
