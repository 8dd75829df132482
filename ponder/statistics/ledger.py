r"""The ledger: an any-time bound on the wrong answers of a stream, which survives drift.

A cheap model answers some rows of a stream in place of a reference. Before each such answer a coin
decides, with the audit probability π, whether the reference is called, too. An audit that finds a
disagreement has *caught* it; a disagreement without an audit is *missed*. The ledger bounds the
number of missed disagreements by the caught ones:

    for a grid of rates a, of weights w_a that sum to 1:
    b(a, π)   = −log((1 − (1 − π) eᵃ) / π)
    cost_a    = Σ b(a, π) over the caught
    wealth(m) = Σ w_a exp(a m − cost_a)
    W         = the largest whole m with wealth(m) < 1/δ

**Statement.** With probability 1 − δ, at all times, at most W disagreements were missed.

**Assumption.** The coin is fair, secret and independent of the reference's answer to the row, which
is the answer that it gives when it is called. Nothing is assumed of the rows, their
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
5. The weighted mean over the rates is a supermartingale from 1; by Ville's inequality it ever
  reaches 1/δ with probability ≤ δ.
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
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ponder._utils.checks import check_real, check_share
from ponder._utils.rounding import rounded_down, rounded_up

__all__ = ["Ledger", "fair_coin", "rises_by_rate"]

fair_coin = random.SystemRandom().random
"""Numbers in [0, 1) from the operating system: nobody can foresee them from earlier ones."""

_RATES = np.geomspace(0.005, 1.2, 20)
"""The grid of a. The smallest rate serves audit probabilities from 0.5% up."""
_USUAL = np.exp(-0.5 * (np.log(_RATES / 0.08) / 0.9) ** 2)
_WEIGHTS = 0.75 * _USUAL / _USUAL.sum() + 0.25 / len(_RATES)
"""Weights of the rates: the most near 0.08, the best one when some tens of disagreements are caught
at audit probabilities from 10 to 40%. Any weights keep the statement; these lower W by some 5%."""


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
        missed_at_most: The bound on what was missed.
        costs: Σ b by rate, `(rates,)`, in which pending audits count as caught.
        caught_costs: The same without pending audits.

    Example:
        >>> ledger = ponder.statistics.Ledger(confidence=0.95)
        >>> for row in range(1000):
        ...     ledger.answer(0.2, audited=row % 5 == 0)
        ...     if row % 5 == 0:
        ...         ledger.settle(0.2, differs=row % 100 == 0)
        >>> ledger.caught, ledger.bound  # of 800 answers that were not audited
        (10, 95)
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
    caught_costs: list[float] = field(default_factory=lambda: [0.0] * len(_RATES), repr=False)

    def __post_init__(self) -> None:
        check_share("confidence", self.confidence)

    @property
    def bound(self) -> int:
        """The largest number of wrong answers so far, at all times with the confidence."""
        if not self.late:
            return self.missed_at_most
        return self.missed_at_most + self.caught + self.pending

    def answer(self, audit_probability: float, *, audited: bool) -> None:
        """Note a cheap answer and the fall of its coin.

        Args:
            audit_probability: π, fixed before the coin was thrown, in (0, 1].
            audited: Whether the reference is called too; the audit is pending until `settle`.
        """
        cost = _cost(audit_probability)
        if audited:
            self.audits += 1
            self.pending += 1
            self.costs = _added(self.costs, cost)
        else:
            self.unaudited += 1
            self.missed_at_most += 1
        self._give_up(cost)
        self._tighten()

    def throw(self, audit_probability: float, coin: Callable[[], float] = fair_coin) -> bool:
        """Throw the coin of a cheap answer, note both, and return whether it is audited.

        Args:
            audit_probability: π, fixed before the coin is thrown, in (0, 1].
            coin: Returns numbers in [0, 1).
        """
        audited = coin() < audit_probability
        self.answer(audit_probability, audited=audited)
        return audited

    def sentence(self, answers: int, reference: str) -> str:
        """Return the bound in words, without a full stop.

        Args:
            answers: Answers given so far, of which the ledger is about the cheap ones.
            reference: What they are compared with.
        """
        share = rounded_up(100 * self.bound / answers, 2)
        confidence = rounded_down(100 * self.confidence)
        return (
            f"Of {answers:,} answers at most {self.bound:,} ({share}%) differ from {reference}, "
            f"with {confidence}% confidence"
        )

    def settle(self, audit_probability: float, *, differs: bool) -> None:
        """Note the outcome of a pending audit.

        Args:
            audit_probability: π of the answer.
            differs: Whether the reference's answer is another.
        """
        cost = _cost(audit_probability)
        self.pending -= 1
        if differs:
            self.caught += 1
            self.caught_costs = _added(self.caught_costs, cost)
            return
        # What was added is taken off again; a rate that was given up stays so.
        pairs = zip(self.costs, cost, strict=True)
        self.costs = [
            max(before - each, 0.0) if math.isfinite(each) else math.inf for before, each in pairs
        ]
        self._tighten()

    def bound_after(self, audit_probability: float) -> int:
        """Return the bound after a cheap answer with this probability, before its coin is known."""
        if self.late:
            return self.bound + 1  # of an audit without an outcome
        unaudited = replace(self)
        unaudited.answer(audit_probability, audited=False)
        return unaudited.bound

    def bounds_by_rate(self, others: float = 0.0) -> NDArray[np.float64]:
        """Return W by each rate of the grid alone if all pending audits agree, `(rates,)`.

        It is infinite for a rate that was given up.

        Args:
            others: Logarithm of the factor that the other rates are taken to add to the wealth.
        """
        margin = _barrier(self.confidence) - _LOG_WEIGHTS - others
        return np.asarray((margin + np.asarray(self.caught_costs)) / _RATES)

    @property
    def worst(self) -> int:
        """W itself, to which the bound tends as answers are given that are not audited."""
        return _most(np.asarray(self.costs), self.confidence)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        state = {each.name: getattr(self, each.name) for each in fields(self)}
        costs = {name: _finite(getattr(self, name)) for name in _COSTS}
        return {**state, **costs}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Return the ledger that `to_dict` described."""
        costs = {
            name: [math.inf if cost is None else cost for cost in state[name]] for name in _COSTS
        }
        return cls(**{**state, **costs})

    def _give_up(self, cost: NDArray[np.float64]) -> None:
        """Give up the rates that an audit probability does not allow."""
        lost = np.isinf(cost).tolist()
        if any(lost):
            for name in _COSTS:
                pairs = zip(getattr(self, name), lost, strict=True)
                setattr(self, name, [math.inf if each else before for before, each in pairs])

    def _tighten(self) -> None:
        """Lower the bound to W, if W is smaller."""
        costs = np.asarray(self.costs)
        if _log_wealth(costs, self.missed_at_most) >= _barrier(self.confidence):
            self.missed_at_most = _most(costs, self.confidence)


_COSTS = ("costs", "caught_costs")


def _added(costs: list[float], more: NDArray[np.float64]) -> list[float]:
    return [before + each for before, each in zip(costs, more.tolist(), strict=True)]


def _finite(costs: list[float]) -> list[float | None]:
    return [None if math.isinf(cost) else cost for cost in costs]


def rises_by_rate(
    audit_probabilities: Sequence[float] | NDArray[Any],
) -> NDArray[np.float64]:
    """Return by how much a caught disagreement raises W at each rate, `(probabilities, rates)`.

    Infinite for a rate that the probability gives up.
    """
    return np.array([_cost(each) for each in audit_probabilities]) / _RATES


def _cost(audit_probability: float) -> NDArray[np.float64]:
    """Return b for each rate, `(rates,)`; infinite for a rate that is given up."""
    check_real("audit_probability", audit_probability, 0.0, 1.0, open_low=True)
    remains = np.maximum(1.0 - (1.0 - audit_probability) * np.exp(_RATES), 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(math.log(audit_probability) - np.log(remains))


def _log_wealth(costs: NDArray[np.float64], missed: int) -> float:
    """Return the logarithm of the wealth at a number of missed disagreements."""
    exponents = _LOG_WEIGHTS + _RATES * missed - costs
    largest = float(exponents.max())
    if math.isinf(largest):
        return largest
    return largest + math.log(float(np.exp(exponents - largest).sum()))


def _barrier(confidence: float) -> float:
    """Return log(1/δ)."""
    return -math.log1p(-confidence)


def _most(costs: NDArray[np.float64], confidence: float) -> int:
    """Return W: the largest whole number with wealth below 1/δ, without a rate infinite."""
    if not np.isfinite(costs).any():
        return _NO_LIMIT
    barrier = _barrier(confidence)
    # Below the first number no rate reaches the barrier, even with the whole weight; at the second
    # one does with its own.
    high = int(np.min((barrier - _LOG_WEIGHTS + costs) / _RATES)) + 1
    low = int(max(np.min((barrier + costs) / _RATES), 0.0))
    while high - low > 1:
        middle = (low + high) // 2
        if _log_wealth(costs, middle) < _barrier(confidence):
            low = middle
        else:
            high = middle
    return low


_LOG_WEIGHTS = np.log(_WEIGHTS)
_NO_LIMIT = 1 << 62
