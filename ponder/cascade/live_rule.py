"""The rule of `Live`: the rows that the cheap model answers, and how often they are audited.

A rule decides the cost of an answer, and never whether the promise holds: the ledger does that for
any rule. `AuditRule` reads each doubt as a probability p to differ, and weighs two prices: an audit
of probability π costs a call with probability π, and a wrong answer is caught with probability p π,
which raises the bound by r(π). It takes for each row

    the π that minimises  π + μ p π r(π),        π = 1 asks the reference at once.

1. p comes from the answers of models that did not learn the row, by a logistic regression on the
   logit of the doubt; rows that were asked since then count, too.
2. r(π) is b(a, π) / a, the rise of the bound by one rate a of the ledger alone.
3. For each rate, the exchange rate μ is the least at which the bound, as it is foreseen some
   answers ahead, stays within what the level allows then. The rate that needs the fewest calls is
   taken; with it comes the least π, since a rate allows no π below 1 − e⁻ᵃ.

Rows that are surely right are audited rarely, doubtful ones often, the worst are deferred. Early
the level allows few wrong answers, so audits are frequent; later they become rare.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ponder.statistics.ledger import Ledger, rises_by_rate

__all__ = ["AuditRule", "Outcome", "Rule", "Standing", "Tuning"]

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
        doubts: Doubts of the other rows of a sorted batch, the largest first, `(rows,)`; None for a
            stream, whose rows to come are not known.
    """

    level: float
    answers: int
    remaining: int
    horizon: int
    ledger: Ledger
    doubts: Floats | None = None


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
        """Return the probability with which the reference is called for a row; 1 defers it.

        Of a sorted batch it is also asked about rows that are not decided yet.
        """

    def learn(self, outcome: Outcome) -> None:
        """Note the reference's answer to a row."""

    def teaches(self, labels: int, taught: int, unknown: int) -> bool:
        """Return whether the cheap model is taught now.

        Args:
            labels: Texts that the reference has answered.
            taught: Those that taught the present cheap model; 0 without one.
            unknown: Answers since then of classes that the cheap model does not know.
        """

    def renew(self, outcomes: Sequence[Outcome]) -> None:
        """Note that the cheap model was taught.

        Args:
            outcomes: The latest rows that taught it, each with the doubt of a model that was taught
                without it.
        """


@dataclass(frozen=True)
class _Plan:
    """Prices for the rows to come.

    Args:
        exchange: μ, calls for a unit of the bound.
        rises: π r(π) of each choice, `(choices,)`.
    """

    exchange: float
    rises: Floats


@dataclass(frozen=True)
class Tuning:
    """Settings of `AuditRule`, tuned on streams with other seeds than those of the results.

    They move costs, and never the promise.

    Args:
        least: The least audit probability: rarer audits would need smaller rates of the ledger,
            which bound more slowly.
        first: Texts that the reference answers before the cheap model is taught first.
        growth: The cheap model is taught again when the number of its texts has grown by this
            factor, so that all teaching costs a multiple of the last one.
        batch_growth: The same in a sorted batch, whose order each new cheap model improves.
        unknown: Answers of new classes after which it is taught at once, since it cannot give them.
        share: Share of what the level allows that is planned for; the rest is for bad luck.
        ahead: A running promise is planned until there are this many times as many answers: further
            away the stream may be another.
        spare: Share of what the level allows that a bound near the level may spend meanwhile.
        every: Rows between two plans, since a plan costs as much as many rows.
        cold: Outcomes before doubts can be read; with fewer the regression is its prior.
        settled: Share of a finite batch that the reference answers before the cheap model does: the
            one that a batch begins with is a poor one.
        asked: Latest outcomes by which doubts are read; older ones are of other models.
        doubts: Latest doubts, which stand for those of rows to come.
        few: With fewer doubts than this, those of the rows that taught stand for them.
        sample: Quantiles of these doubts in a plan.
        known_sample: The same of the doubts of rows to come that are known.
        prior: Wrong answers that are taken to have been seen as expected, before any is.
        fading: Factor of the weight of older rows at each plan, since a stream drifts.
        constant: Limit of the bound without a catch, as a share of what the level allows now. The
            bound grows as audits become rarer; without a limit a rule whose cheap model is never
            wrong would make them rarer whenever it may, and wait for the level each time.
        neighbours: Logarithm of the contribution of other rates than the best to the wealth.
    """

    least: float = 0.06
    first: int = 300
    growth: float = 1.5
    batch_growth: float = 1.25
    unknown: int = 30
    share: float = 0.9
    ahead: float = 1.25
    spare: float = 0.3
    every: int = 64
    cold: int = 150
    settled: float = 1 / 12
    asked: int = 400
    doubts: int = 256
    few: int = 64
    sample: int = 32
    known_sample: int = 128
    prior: float = 15.0
    fading: float = 0.97
    constant: float = 0.6
    neighbours: float = 0.7


class AuditRule:
    """Audits that cost the fewest calls for what the level allows.

    Args:
        tuning: Its settings.
    """

    def __init__(self, tuning: Tuning = Tuning()) -> None:
        self.tuning = tuning
        self._choices = np.append(np.geomspace(tuning.least, 0.9, 16), 1.0)
        self._unit_rises = _unit_rises(self._choices)
        self._asked = deque[Outcome](maxlen=tuning.asked)
        self._without = list[Outcome]()
        self._doubts = deque[float](maxlen=tuning.doubts)
        self._offset = 0.0
        self._slope = 1.0
        self._plan: _Plan | None = None
        self._since_plan = self.tuning.every
        self._sorted = False  # whether the last row was one of a sorted batch
        self._expected = 0.0
        self._found = 0.0

    def audit_probability(self, doubt: float, standing: Standing) -> float:
        """Return the probability with which the reference is called for a row; 1 defers it."""
        logit = _logit(doubt)
        self._doubts.append(logit)
        self._sorted = standing.doubts is not None
        if len(self._asked) + len(self._without) < self.tuning.cold:
            return 1.0  # how the first cheap model's confidence is to be read is not known yet
        if standing.answers < self.tuning.settled * standing.horizon:
            return 1.0  # the cheap model that a batch begins with is a poor one
        self._since_plan += 1
        if self._since_plan > self.tuning.every:
            self._make_plan(standing)
            self._since_plan = 0
        if self._plan is None:
            return 1.0
        wrong = 1.0 / (1.0 + math.exp(-(self._offset + self._slope * logit)))
        prices = self._choices + self._plan.exchange * wrong * self._plan.rises
        probability = float(self._choices[prices.argmin()])
        if probability < 1.0 and not self._sorted:
            self._expected += wrong * (1.0 - probability)
        return probability

    def learn(self, outcome: Outcome) -> None:
        """Note the reference's answer to a row."""
        self._asked.append(outcome)
        if outcome.differs and outcome.probability < 1.0 and not self._sorted:
            self._found += (1.0 - outcome.probability) / outcome.probability

    def teaches(self, labels: int, taught: int, unknown: int) -> bool:
        """Return whether labels have grown enough, or enough classes are new to the cheap model."""
        if labels < self.tuning.first:
            return False
        growth = self.tuning.batch_growth if self._sorted else self.tuning.growth
        return labels >= growth * taught or unknown >= max(self.tuning.unknown, 0.02 * taught)

    def renew(self, outcomes: Sequence[Outcome]) -> None:
        """Take the doubts of models that did not learn a row, and plan again."""
        self._without = list(outcomes)
        self._doubts.clear()
        self._since_plan = self.tuning.every

    def _make_plan(self, standing: Standing) -> None:
        """Read doubts anew by the outcomes, and find the prices that the level allows."""
        self._read_doubts()
        fixed = standing.ledger.bounds_by_rate(self.tuning.neighbours)
        bound = min(standing.ledger.bound, float(fixed.min()))
        end: float = standing.horizon
        if standing.horizon <= standing.answers:
            # Some answers ahead; further if the bound is near the level, since it can be brought
            # down by answers of the reference alone, of which the level allows `spare` to be
            # spent meanwhile.
            spare = self.tuning.spare
            excess = bound / standing.level - spare * standing.answers
            recovered = excess / (self.tuning.share - spare)
            end = max(self.tuning.ahead * standing.answers, recovered)
        allowed = self._planned_share(standing) * standing.level * end
        constant = Ledger(standing.ledger.confidence).bounds_by_rate(self.tuning.neighbours)
        now = standing.level * max(standing.horizon, standing.answers)
        within = np.flatnonzero((fixed < allowed) & (constant < self.tuning.constant * now))
        self._plan = None
        if len(within):
            rows = (end - standing.answers) * self._correction()
            wrong = self._wrong_to_come(standing.doubts)
            self._plan = self._fewest_calls(within, fixed[within], allowed, rows, wrong)

    def _read_doubts(self) -> None:
        """Fit the probability to differ, as a function of the doubt, to the outcomes.

        In a stream that drifts, an audited row stands for the 1/π like it. The rows of a sorted
        batch are those of its sample, and the one function of the doubt holds for all: there the
        weights would only let a single row that was audited by chance decide.
        """
        outcomes = [*self._without, *self._asked]
        weights = np.ones(len(outcomes))
        if not self._sorted:
            weights = np.array([1.0 / one.probability for one in outcomes])
        self._offset, self._slope = _logistic(outcomes, weights)

    def _planned_share(self, standing: Standing) -> float:
        """Return the share of what the level allows that is planned for.

        The end of a batch needs no reserve.
        """
        if not self._sorted:
            return self.tuning.share
        return 1.0 - (1.0 - self.tuning.share) * standing.remaining / standing.horizon

    def _fewest_calls(
        self,
        within: NDArray[np.intp],
        fixed: Floats,
        allowed: float,
        rows: float,
        wrong_to_come: Floats,
    ) -> _Plan:
        """Return the plan of the rate that needs the fewest calls.

        Args:
            within: Rates that are possible.
            fixed: W by each of them so far.
            allowed: What W may be in the end.
            rows: Rows to come, more if more than expected was wrong.
            wrong_to_come: Probabilities to differ, like those of the rows to come, `(sample,)`.
        """
        rises = self._unit_rises[within][:, None, :]
        wrong = wrong_to_come[:, None]
        low = np.full(len(within), -3.0)
        high = np.full(len(within), 12.0)  # of log μ
        for _ in range(16):
            middle = (low + high) / 2
            prices = self._choices + np.exp(middle)[:, None, None] * wrong * rises
            places = prices.argmin(axis=2)[:, :, None]
            chosen = np.take_along_axis(rises + 0.0 * wrong, places, 2)[:, :, 0]
            rise = (wrong[:, 0] * chosen).mean(axis=1)
            over = fixed + rows * rise > allowed
            low = np.where(over, middle, low)
            high = np.where(over, high, middle)
        prices = self._choices + np.exp(high)[:, None, None] * wrong * rises
        best = int(self._choices[prices.argmin(axis=2)].mean(axis=1).argmin())
        return _Plan(float(np.exp(high[best])), self._unit_rises[within[best]])

    def _wrong_to_come(self, known: Floats | None) -> Floats:
        """Return probabilities to differ, like those of the rows to come, `(sample,)`.

        Args:
            known: The doubts of the rows to come, in their order, if they are known.
        """
        doubts = np.array(self._doubts)
        if known is not None and len(known):
            places = _middles(self.tuning.known_sample) * len(known)
            doubts = _logits(known[places.astype(int)])
        elif len(doubts) < self.tuning.few and self._without:
            # Rows that taught were asked, so doubtful ones are among them more often than in the
            # stream: the weights 1/π make up for it.
            weights = np.array([1.0 / one.probability for one in self._without])
            every = _logits([one.doubt for one in self._without])
            order = every.argsort()
            shares = (weights[order].cumsum() - weights[order] / 2) / weights.sum()
            doubts = np.interp(_middles(self.tuning.sample), shares, every[order])
        elif len(doubts) > self.tuning.sample:
            doubts = np.quantile(doubts, _middles(self.tuning.sample))
        return np.asarray(1.0 / (1.0 + np.exp(-(self._offset + self._slope * doubts))))

    def _correction(self) -> float:
        """Return how much more was wrong of late than expected; older rows count less.

        A sorted batch does not drift.
        """
        if self._sorted:
            return 1.0
        ratio = (self._found + self.tuning.prior) / (self._expected + self.tuning.prior)
        self._found *= self.tuning.fading
        self._expected *= self.tuning.fading
        return min(max(ratio, 0.8), 4.0)


def _unit_rises(choices: Floats) -> Floats:
    """Return π r(π) by rate and choice, `(rates, choices)`; large if the rate is given up."""
    rises = rises_by_rate(choices).T * choices
    return np.where(np.isfinite(rises), rises, 1e12)


def _middles(count: int) -> Floats:
    """Return the middles of equal parts of [0, 1], `(count,)`."""
    return (np.arange(count) + 0.5) / count


def _logit(share: float) -> float:
    share = min(max(share, 1e-6), 1.0 - 1e-6)
    return math.log(share / (1.0 - share))


def _logits(shares: Sequence[float]) -> Floats:
    clipped = np.clip(np.asarray(shares), 1e-6, 1.0 - 1e-6)
    return np.asarray(np.log(clipped / (1.0 - clipped)))


def _logistic(outcomes: Sequence[Outcome], weights: Floats) -> tuple[float, float]:
    """Return offset and slope of a logistic regression of disagreement on the logit of the doubt.

    A prior says that doubts are read as they stand.
    """
    doubts = _logits([one.doubt for one in outcomes])
    differs = np.array([float(one.differs) for one in outcomes])
    design = np.stack([np.ones(len(doubts)), doubts], axis=1)
    prior = np.array([0.0, 1.0])
    strength = np.array([2.0, 10.0])
    found = prior.copy()
    for _ in range(12):
        shares = 1.0 / (1.0 + np.exp(-np.clip(design @ found, -30, 30)))
        slope = design.T @ (weights * (differs - shares)) - strength * (found - prior)
        curvature = (design * (weights * shares * (1 - shares))[:, None]).T @ design
        step = np.linalg.solve(curvature + np.diag(strength), slope)
        found = found + np.clip(step, -1.0, 1.0)
    return float(found[0]), float(max(found[1], 0.05))
