r"""The ledger: an any-time bound on the wrong answers of a stream, which survives drift.

A cheap model answers some rows of a stream in place of a reference. Before each such answer a coin
decides, with the audit probability π, whether the reference is asked too. An audit that finds a
disagreement has *caught* it; a disagreement without an audit is *missed*. The ledger bounds what
was missed by what was caught:

    for a grid of rates a:   cost_a = Σ b(a, π) over the caught,   b(a, π) = −log((1 − (1 − π) eᵃ) /
    π) wealth(m) = mean over a of exp(a m − cost_a) W = the largest whole m with wealth(m) < 1/δ

**Statement.** With probability 1 − δ, at all times, at most W disagreements were missed.

**Assumption.** The coin is fair, secret and independent of what the reference says to the row; the
answer of the reference is what it says when it is asked. Nothing is assumed of the rows, their
order, the cheap model, its retraining or the rule that chooses π, as long as π is fixed before the
coin is thrown.

**Proof.**

1. Fix a with (1 − π) eᵃ < 1. If the cheap answer to a row agrees, neither count changes.
2. If it disagrees, exp(a missed − cost_a) is multiplied by eᵃ with probability 1 − π, and else by
  e^(−b).
3. The mean of the factor, (1 − π) eᵃ + π e^(−b), is 1 by the choice of b: a nonnegative martingale
   from 1, also when the row and π were chosen by someone who knows all that happened before and
   what the reference would say.
4. A rate with (1 − π) eᵃ ≥ 1 is given up before the coin: its wealth is 0 from then on, which only
  lowers the mean.
5. The mean over the rates is a supermartingale from 1; by Ville's inequality it ever reaches 1/δ
  with probability ≤ δ.
6. While it has not, the wealth at `missed` is below 1/δ; the wealth grows with m, so `missed` is at
  most W.

Two bounds hold at once, W and the bound before plus the answers since that were not audited; the
smaller is kept, so a catch never raises what was known a moment ago. An audit without an outcome
counts as caught.

Sources: Ville 1939; risk-limiting audits (ALPHA, Stark, arXiv 2201.02707); labels with a promise on
a fixed batch (PAC labels, Candès, Ilyas and Zrnic, arXiv 2506.10908); any-time thresholds from
audits (B-PAC, arXiv 2601.22446).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ponder._utils.checks import check_real, check_share

__all__ = ["Ledger"]

_RATES = np.geomspace(0.005, 1.2, 14)
"""The grid of a. The smallest rate serves audit probabilities from 0.5% up."""


@dataclass
class Ledger:
    """Any-time bound on the wrong answers that a cheap model gave in place of a reference.

    Each cheap answer is noted by `answer`, with the probability of its audit and the fall of the
    coin, and each outcome of an audit by `settle`. Audits are of one of two kinds. *Mended*: the
    answer that is given is the reference's, so an audited answer is right. *Late*: the audit comes
    after the answer was given, so what it catches is wrong, and an audit without an outcome counts
    as wrong.

    Args:
        confidence: The probability with which the bound holds at all times, 1 − δ, in (0, 1).
        late: Whether audits come after the answers.

    Attributes:
        unaudited: Cheap answers that were not audited.
        audits: Audits that were begun.
        pending: Audits that have no outcome yet.
        caught: Disagreements that audits found.

    Example:
        >>> ledger = ponder.calibration.Ledger(confidence=0.95)
        >>> for row in range(1000):
        ...     ledger.answer(0.2, audited=row % 5 == 0)
        ...     if row % 5 == 0:
        ...         ledger.settle(0.2, differs=row % 100 == 0)
        >>> ledger.caught, ledger.bound  # of 800 answers that were not audited
        (10, 101)
    """

    confidence: float = 0.95
    late: bool = False
    _: KW_ONLY
    unaudited: int = 0
    audits: int = 0
    pending: int = 0
    caught: int = 0
    missed_at_most: int = 0
    costs: list[float] = field(default_factory=lambda: [0.0] * len(_RATES), repr=False)

    def __post_init__(self) -> None:
        check_share("confidence", self.confidence)

    @property
    def bound(self) -> int:
        """The largest number of wrong answers given so far, with the probability `confidence` at all times."""
        return self.missed_at_most + (self.caught + self.pending if self.late else 0)

    def answer(self, audit_probability: float, *, audited: bool) -> None:
        """Note a cheap answer and the fall of its coin.

        Args:
            audit_probability: π, fixed before the coin was thrown, in (0, 1].
            audited: Whether the reference is asked too; the audit is pending until `settle`.
        """
        cost = _cost(audit_probability)
        if audited:
            self.audits += 1
            self.pending += 1
            self.costs = [before + each for before, each in zip(self.costs, cost, strict=True)]
        else:
            self.unaudited += 1
            self.missed_at_most += 1
            pairs = zip(self.costs, cost, strict=True)
            self.costs = [math.inf if math.isinf(each) else before for before, each in pairs]
        self._tighten()

    def settle(self, audit_probability: float, *, differs: bool) -> None:
        """Note the outcome of a pending audit.

        Args:
            audit_probability: π of the answer.
            differs: Whether the reference's answer is another.
        """
        self.pending -= 1
        if differs:
            self.caught += 1
            return
        # What was added is taken off again; a rate that was given up stays so.
        pairs = zip(self.costs, _cost(audit_probability), strict=True)
        self.costs = [
            max(before - each, 0.0) if math.isfinite(each) else math.inf for before, each in pairs
        ]
        self._tighten()

    def bound_after(self, audit_probability: float) -> int:
        """Return the bound if the next cheap answer has this probability, however its coin falls."""
        if self.late:
            return self.bound + 1  # of an audit without an outcome
        unaudited = replace(self)
        unaudited.answer(audit_probability, audited=False)
        return unaudited.bound

    def rise(self, audit_probabilities: Sequence[float] | NDArray[Any]) -> NDArray[np.float64]:
        """Return by how much W rises if the next disagreement is caught with each probability, `(probabilities,)`."""
        prices = np.array([_cost(each) for each in audit_probabilities])
        costs = np.asarray(self.costs) + np.vstack([np.zeros(len(_RATES)), prices])
        most = np.array([_most(each, self.confidence) for each in costs], dtype=np.float64)
        return np.asarray(most[1:] - most[0])

    @property
    def worst(self) -> int:
        """W itself, to which the bound tends as answers are given that are not audited."""
        return _most(np.asarray(self.costs), self.confidence)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        state = asdict(self)
        return {**state, "costs": [None if math.isinf(cost) else cost for cost in self.costs]}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Return the ledger that `to_dict` described."""
        costs = [math.inf if cost is None else cost for cost in state["costs"]]
        return cls(**{**state, "costs": costs})

    def _tighten(self) -> None:
        """Lower the bound to W, if W is smaller."""
        costs = np.asarray(self.costs)
        if _log_wealth(costs, self.missed_at_most) >= _barrier(self.confidence):
            self.missed_at_most = _most(costs, self.confidence)


def _cost(audit_probability: float) -> NDArray[np.float64]:
    """Return b for each rate, `(rates,)`; infinite for a rate that is given up."""
    check_real("audit_probability", audit_probability, 0.0, 1.0, open_low=True)
    remains = np.maximum(1.0 - (1.0 - audit_probability) * np.exp(_RATES), 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(math.log(audit_probability) - np.log(remains))


def _log_wealth(costs: NDArray[np.float64], missed: int) -> float:
    """Return the logarithm of the wealth at a number of missed disagreements."""
    return float(np.logaddexp.reduce(_RATES * missed - costs)) - math.log(len(_RATES))


def _barrier(confidence: float) -> float:
    """Return log(1/δ)."""
    return -math.log1p(-confidence)


def _most(costs: NDArray[np.float64], confidence: float) -> int:
    """Return W: the largest whole number whose wealth is below 1/δ; without a rate there is no limit."""
    if not np.isfinite(costs).any():
        return _NO_LIMIT
    barrier = _barrier(confidence) + math.log(len(_RATES))
    # One rate alone reaches the barrier between these two numbers, so the mixture does.
    singly = (barrier + costs) / _RATES
    high = int(np.min(singly)) + 1
    low = int(max((np.min(singly - math.log(len(_RATES)) / _RATES)), 0.0))
    while high - low > 1:
        middle = (low + high) // 2
        if _log_wealth(costs, middle) < _barrier(confidence):
            low = middle
        else:
            high = middle
    return low


_NO_LIMIT = 1 << 62
