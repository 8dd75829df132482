"""The rule of `Live`: which rows the cheap model answers, and how often each such answer is audited.

A rule decides what an answer costs, and never whether the promise holds: the ledger does that for
any rule. `AuditRule` weighs two prices for each row: an audit costs a call of the reference with
probability π; an answer that is wrong with probability p and is caught raises the bound by
`rise(π)`, so p π rise(π) in the mean. It takes the π that minimises

    π + μ p π rise(π),        π = 1 asks the reference at once,

and the exchange rate μ at which the mean rise of the bound, over the rows seen lately, is what the
level allows. Rows that are surely right are audited rarely, doubtful ones often, the worst are
deferred; nothing else sets a threshold.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ponder.calibration.ledger import Ledger

__all__ = ["AuditRule", "Outcome", "Rule", "Standing"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Standing:
    """What a rule may look at before a row.

    Args:
        level: The share of the answers that may differ.
        answers: Answers given so far.
        remaining: Rows that are known to come, this one included.
        horizon: Answers that the level is about: those so far, or all of a finite batch.
        ledger: The ledger; a rule only reads it.
    """

    level: float
    answers: int
    remaining: int
    horizon: int
    ledger: Ledger


@dataclass(frozen=True)
class Outcome:
    """A row about which the reference was asked.

    Args:
        doubt: 1 − the cheap model's confidence in its answer.
        differs: Whether the reference's answer is another.
        probability: The probability with which it was asked.
    """

    doubt: float
    differs: bool
    probability: float


class Rule(Protocol):
    """What `Live` asks of a rule."""

    def audit_probability(self, doubt: float, standing: Standing) -> float:
        """Return the probability with which the reference is asked about a row; 1 defers it."""

    def learn(self, outcome: Outcome) -> None:
        """Note what the reference said to a row."""

    def teaches(self, labels: int, taught: int, unknown: int) -> bool:
        """Return whether the cheap model is taught now.

        Args:
            labels: Texts that the reference has answered.
            taught: Those that taught the present cheap model; 0 without one.
            unknown: Answers since then of classes that the cheap model does not know.
        """

    def renew(self) -> None:
        """Note that the cheap model was taught."""


class AuditRule:
    """Audits that cost the fewest calls for what the level allows.

    Args:
        least: The least audit probability; None for the least whose constant, the bound when
            nothing was caught, is a small part of what the level allows for the answers to come.
        first: Texts that the reference answers before the cheap model is taught first.
        growth: The cheap model is taught again when the number of its texts has grown by this
            factor.
        share: Share of the allowed rise that is planned for; the rest is for bad luck.
    """

    def __init__(
        self, least: float | None = None, first: int = 300, growth: float = 1.5, share: float = 0.8
    ) -> None:
        self.first, self.growth, self.share = first, growth, share
        self._least = least
        self._choices = _choices(least or _LEAST[-1])
        self._seen = deque[Outcome](maxlen=_WINDOW)
        self._doubts = deque[float](maxlen=_WINDOW)
        self._since_plan = _EVERY
        self._offset, self._slope, self._exchange = 0.0, 1.0, math.inf
        self._rises = np.zeros(len(self._choices))
        self._planned, self._start = 0.0, 0

    def audit_probability(self, doubt: float, standing: Standing) -> float:
        """Return the probability with which the reference is asked about a row; 1 defers it."""
        self._doubts.append(_logit(doubt))
        if len(self._seen) < _COLD:
            return 1.0  # how the first cheap model's confidence is to be read is not known yet
        self._since_plan += 1
        if self._since_plan > _EVERY:
            self._plan(standing)
            self._since_plan = 0
        wrong = self._wrong(np.array([self._doubts[-1]]))
        place = self._cheapest(wrong, self._exchange)[0]
        self._planned += float(wrong[0] * self._choices[place] * self._rises[place])
        return float(self._choices[place])

    def learn(self, outcome: Outcome) -> None:
        """Note what the reference said to a row."""
        self._seen.append(outcome)

    def teaches(self, labels: int, taught: int, unknown: int) -> bool:
        """Return whether labels have grown enough, or enough classes are new to the cheap model."""
        if labels < self.first:
            return False
        return labels >= self.growth * taught or unknown >= max(_UNKNOWN, 0.02 * taught)

    def renew(self) -> None:
        """Keep some of what is known about the old cheap model: how its confidence is to be read."""
        kept = list(self._seen)[-_KEPT:]
        self._seen.clear()
        self._seen.extend(kept)
        self._doubts.clear()
        self._since_plan = _EVERY

    def _plan(self, standing: Standing) -> None:
        """Read confidences anew by the outcomes, and find the exchange rate that the level allows."""
        self._offset, self._slope = _logistic(self._seen)
        self._choices = _choices(self._least or self._least_for(standing))
        self._rises = standing.ledger.rise(self._choices)
        wrong = self._wrong(np.array(self._doubts))
        surplus = standing.level * standing.horizon - standing.ledger.bound
        if standing.horizon > standing.answers:
            allowed = surplus / max(standing.remaining, 1)
        else:
            # A running promise earns `level` a row; what was saved is spent over as many rows as
            # there were.
            ahead = max(min(standing.remaining, standing.answers), _AHEAD)
            allowed = standing.level + surplus / ahead
        allowed *= self.share * self._correction(standing)
        low, high = 0.0, 60.0  # of log(1 + μ)
        for _ in range(30):
            middle = (low + high) / 2
            if self._mean_rise(wrong, math.expm1(middle)) > allowed:
                low = middle
            else:
                high = middle
        self._exchange = math.expm1(high)

    def _correction(self, standing: Standing) -> float:
        """Return by how much to plan more carefully, since the bound rose more than was planned of late."""
        worst = standing.ledger.worst
        ratio = (self._planned + _PRIOR_RISE) / (max(worst - self._start, 0) + _PRIOR_RISE)
        # What is long ago counts less.
        self._planned *= _FADING
        self._start = round(worst - _FADING * (worst - self._start))
        return min(max(ratio, 0.25), 1.25)

    def _least_for(self, standing: Standing) -> float:
        """Return the least audit probability whose constant the level can bear."""
        total = standing.answers + max(standing.remaining, standing.answers)
        bearable = _CONSTANT * standing.level * total
        for least, constant in zip(_LEAST, _CONSTANTS, strict=True):
            if constant <= bearable:
                return least
        return _LEAST[-1]

    def _cheapest(self, wrong: Floats, exchange: float) -> NDArray[np.intp]:
        """Return the place of each row's best audit probability, `(rows,)`."""
        prices = self._choices + exchange * wrong[:, None] * self._choices * self._rises
        return np.asarray(np.argmin(prices, axis=1))

    def _mean_rise(self, wrong: Floats, exchange: float) -> float:
        places = self._cheapest(wrong, exchange)
        return float(np.mean(wrong * self._choices[places] * self._rises[places]))

    def _wrong(self, doubts: Floats) -> Floats:
        """Return the probabilities that cheap answers differ, `(rows,)`."""
        return np.asarray(1.0 / (1.0 + np.exp(-(self._offset + self._slope * doubts))))


_WINDOW, _KEPT, _EVERY, _AHEAD, _UNKNOWN = 1000, 400, 64, 500, 30
_PRIOR_RISE, _FADING, _COLD = 20.0, 0.95, 150
_LEAST = (0.1, 0.14, 0.2, 0.3, 0.4)
_CONSTANT = 0.12
"""The share of the allowed wrong answers that the constant may take."""


def _constant(least: float) -> int:
    """Return the bound of a ledger that caught nothing at an audit probability."""
    ledger = Ledger()
    ledger.answer(least, audited=False)
    return ledger.worst


_CONSTANTS = tuple(_constant(least) for least in _LEAST)


def _choices(least: float) -> Floats:
    """Return audit probabilities from the least on; 1 asks at once."""
    return np.append(np.geomspace(least, 0.9, 16), 1.0)


def _logit(share: float) -> float:
    share = min(max(share, 1e-6), 1.0 - 1e-6)
    return math.log(share / (1.0 - share))


def _logistic(seen: Sequence[Outcome] | deque[Outcome]) -> tuple[float, float]:
    """Return offset and slope of a logistic regression of disagreement on the logit of the doubt.

    Rows count by 1/π, and the later the more; a prior says that confidences are read as they stand.
    """
    if not seen:
        return 0.0, 1.0
    doubts = np.array([_logit(one.doubt) for one in seen])
    differs = np.array([float(one.differs) for one in seen])
    weights = np.array([1.0 / one.probability for one in seen])
    weights *= 0.5 ** (np.arange(len(seen))[::-1] / _HALF_LIFE)
    design = np.stack([np.ones(len(doubts)), doubts], axis=1)
    prior, strength = np.array([0.0, 1.0]), np.array([2.0, 10.0])
    found = prior.copy()
    for _ in range(12):
        shares = 1.0 / (1.0 + np.exp(-np.clip(design @ found, -30, 30)))
        slope = design.T @ (weights * (differs - shares)) - strength * (found - prior)
        curvature = (design * (weights * shares * (1 - shares))[:, None]).T @ design
        step = np.linalg.solve(curvature + np.diag(strength), slope)
        found = found + np.clip(step, -1.0, 1.0)
    return float(found[0]), float(max(found[1], 0.05))


_HALF_LIFE = 400.0
