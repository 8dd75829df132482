"""Diagnosis: do early exits pay on a model? Policies are compared with blind choices.

A blind choice reads nothing of a row: one step for all rows, or a coin between two steps
(`best_blind`). `_Tried` chooses policy and blind choice on some rows and compares them on others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from ponder._utils.checks import check_real
from ponder.calibration.families import FamilyLike, family_of
from ponder.calibration.records import Floats, Ints, Record, at_exits, check_record, serves
from ponder.calibration.sweeps import as_costs
from ponder.errors import ArgumentError
from ponder.policies.certainty import Confidence, Entropy, Margin
from ponder.policies.counting import Patience
from ponder.policies.halting import Quantile

__all__ = ["Diagnosis", "Gain", "diagnose"]

Outcome: TypeAlias = Literal[
    "exits pay", "one step is as good", "too few rows", "no policy is cheap enough"
]
_SHARES = ("accuracy", "exact_match", "agreement with full depth")
_Z = 1.96  # of a 95% interval
_FOLDS = 10
_FEWEST_ROWS = 20


@dataclass(frozen=True)
class Gain:
    """The gain of the best policy over the best blind choice, at one speed-up.

    Policy, threshold and blind choice are chosen on nine tenths of the rows, each the best that the
    speed-up allows, and compared on the last tenth, ten times over. So the comparison is on rows
    that chose neither.

    Args:
        speedup: Cost of full depth ÷ highest mean cost; in steps if no costs were passed.
        policy: The policy that is best on all rows, as text.
        score: Its score on all rows; NaN if no policy is cheap enough.
        blind: The score of the best blind choice on all rows: one step, or a coin between two.
        gain: Policy minus blind, mean over rows that chose neither.
        low: Lower end of the 95% interval of the gain.
        high: Upper end of the interval.
    """

    speedup: float
    policy: str
    score: float
    blind: float
    gain: float
    low: float
    high: float

    @property
    def pays(self) -> bool:
        """Whether the interval of the gain is above 0, and above rounding."""
        return self.low > 1e-12 * abs(self.blind)

    def __str__(self) -> str:
        return f"a gain of {self.gain:+.4f}, 95% interval {self.low:+.4f} to {self.high:+.4f}"


@dataclass(frozen=True)
class Diagnosis:
    """The answer to "should I let examples exit early?".

    Args:
        metric: Name of the score, the higher the better.
        scores: The score at each step, `(steps,)`.
        gains: Policy against blind at each speed-up.
        rows: Number of rows.

    Example:
        >>> diagnosis = ponder.diagnose(trajectory)
        >>> [round(score, 2) for score in diagnosis.scores]  # of each step
        [0.33, 0.67, 1.0, 1.0]
        >>> best = diagnosis.gains[0]  # at 1.5 times fewer steps
        >>> best.speedup, round(best.score, 2)
        (1.5, 1.0)
        >>> diagnosis.outcome
        'exits pay'
    """

    metric: str
    scores: tuple[float, ...]
    gains: tuple[Gain, ...]
    rows: int

    @property
    def outcome(self) -> Outcome:
        """The answer as one of four fixed texts, for programs."""
        known = self._known_gains()
        if not known:
            return "no policy is cheap enough"
        if any(gain.pays for gain in known):
            return "exits pay"
        # If a gain above this margin is still possible, more rows could show it.
        margin = 0.03
        if self.metric not in _SHARES:
            margin = 0.1 * (max(self.scores) - min(self.scores))
        if any(gain.high > margin for gain in known):
            return "too few rows"
        return "one step is as good"

    @property
    def verdict(self) -> str:
        """The outcome in one sentence, with its uncertainty."""
        if self.outcome == "no policy is cheap enough":
            return "No policy that was tried is cheap enough for any of the speed-ups."
        best = max(self._known_gains(), key=lambda gain: (gain.pays, gain.gain))
        won = f"over the best blind choice at ×{best.speedup:g} the best policy has {best}"
        if self.outcome == "too few rows":
            return (
                f"These {self.rows} rows cannot tell whether early exits pay on this model: {won}. "
                "Record more rows."
            )
        if self.outcome == "one step is as good":
            return f"On this model one fixed step is as good as any policy tried: {won}."
        metric = self.metric.replace("_", " ")
        return (
            f"Early exits pay on this model: at ×{best.speedup:g} {best.policy} scores "
            f"{best.score:.4f} ({metric}; {self.scores[-1]:.4f} at full depth) where the best "
            f"blind choice scores {best.blind:.4f} ({best})."
        )

    def _known_gains(self) -> list[Gain]:
        """Return the gains at the speed-ups for which a policy is cheap enough."""
        return [gain for gain in self.gains if not math.isnan(gain.gain)]

    def __str__(self) -> str:
        return self.verdict

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; NaN becomes None."""
        return {
            "outcome": self.outcome,
            "verdict": self.verdict,
            "metric": self.metric,
            "rows": self.rows,
            "scores": list(self.scores),
            "gains": [_without_nan(vars(gain)) for gain in self.gains],
        }


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by name, with None for NaN, which JSON lacks."""
    plain = dict(values)
    for name, value in values.items():
        if value != value:
            plain[name] = None
    return plain


def diagnose(
    trajectory: Record,
    compare: FamilyLike | Sequence[FamilyLike] | None = None,
    *,
    metric: Any = None,
    speedups: Sequence[float] = (1.5, 2.0, 3.0),
    costs: Sequence[float] | None = None,
) -> Diagnosis:
    """Say whether early exits pay: whether a policy beats blind exits at the same speed-up.

    Blind exits, at one step for all rows or by a coin between two steps, read nothing of a row.
    Only the gain over them is the work of a policy.

    Args:
        trajectory: A full-depth run, with labels, on rows that chose nothing.
        compare: Classes of policies with a threshold, or policies whose threshold is moved. By
            default those of the papers that can be replayed on the record.
        metric: A mean over rows: ``"accuracy"``, ``"exact_match"``, ``"negative_squared_error"``.
            By default the task's own.
        speedups: Cost of full depth ÷ mean cost, at which policy and blind choice are compared.
        costs: Cost of exiting after each step, `(steps,)`. By default step n costs n.

    Raises:
        ArgumentError: Fewer than 20 rows or 2 steps, or a score that is no mean over rows.

    Example:
        >>> print(diagnose(trajectory, policies.Confidence).metric)
        accuracy
    """
    check_record(trajectory)
    for speedup in speedups:
        check_real("speedups", speedup, 1.0)
    name = trajectory.score_name(metric)
    scores = trajectory.score_table(metric)
    if scores is None or not _can_be_compared(scores):
        raise ArgumentError(
            "trajectory",
            expected="at least 20 rows and 2 steps, with a finite score that is a mean over rows",
            got=f"{len(trajectory)} rows, {trajectory.num_steps} steps, {name}",
            remedy="Record more of the data, or pass metric='accuracy'.",
        )
    cost = as_costs(costs, trajectory.num_steps)
    compared = _exits_of(trajectory, _families(trajectory, compare))
    tried = _Tried(scores, cost, compared.exits, compared.names)
    gains = tuple(tried.gain(speedup) for speedup in speedups if speedup * cost[0] <= cost[-1])
    return Diagnosis(name, tuple(scores.mean(axis=0).tolist()), gains, len(trajectory))


def _can_be_compared(scores: Floats) -> bool:
    rows, steps = scores.shape
    return rows >= _FEWEST_ROWS and steps >= 2 and bool(np.isfinite(scores).all())


def _families(
    trajectory: Record, compare: FamilyLike | Sequence[FamilyLike] | None
) -> list[FamilyLike]:
    """Return the families to compare: those of the caller, or those of the papers."""
    if compare is None:
        of_papers = (
            Confidence(0.5),
            Margin(0.5),
            Entropy(0.5),
            Patience(1, tolerance=1.0),
            Quantile(0.5),
        )
        return [type(policy) for policy in of_papers if serves(trajectory, policy)]
    if isinstance(compare, Sequence):
        return list(compare)
    return [compare]


@dataclass(frozen=True, eq=False)
class _ExitsOfPolicies:
    """The exits under every threshold of every family.

    Args:
        exits: Exit steps, `(policies, rows)`.
        names: The policies as text.
    """

    exits: Ints
    names: list[str]


def _exits_of(trajectory: Record, likes: Sequence[FamilyLike]) -> _ExitsOfPolicies:
    """Return the exits under all thresholds that the families try."""
    exits = list[Ints]()
    names = list[str]()
    for like in likes:
        family = family_of(like, None, trajectory, look=True, argument="compare")
        for places, steps in family.exit_steps(trajectory):
            exits.append(steps)
            names += [repr(family.build(family.values[place])) for place in places]
    return _ExitsOfPolicies(np.concatenate(exits), names)


class _Tried:
    """Policies compared with blind choices, on all rows and on folds of them.

    Args:
        values: The score of the answers, `(rows, steps)`.
        cost: Cost of exiting after each step, `(steps,)`.
        exits: Exit steps of all policies, `(policies, rows)`.
        names: The policies as text.
    """

    def __init__(self, values: Floats, cost: Floats, exits: Ints, names: Sequence[str]) -> None:
        self.values = values
        self.cost = cost
        self.names = names
        self._scores = at_exits(values, exits)
        self._costs = at_exits(cost, exits)
        self._folds = np.array_split(np.random.default_rng(0).permutation(len(values)), _FOLDS)

    def gain(self, speedup: float) -> Gain:
        """Compare the best policy with the best blind choice at a speed-up."""
        cost = float(self.cost[-1]) / speedup
        blindly = best_blind(self.values.mean(axis=0), self.cost, cost)
        blind = float(blindly.scores(self.values).mean())
        best = self._best(np.arange(len(self.values)), cost)
        if best is None:
            return Gain(
                speedup=speedup,
                policy=f"none within a cost of {cost:.2f}",
                score=math.nan,
                blind=blind,
                gain=math.nan,
                low=math.nan,
                high=math.nan,
            )
        estimate = self.cross_fit(cost)
        return Gain(
            speedup=speedup,
            policy=self.names[best],
            score=float(self._scores[best].mean()),
            blind=blind,
            gain=estimate.mean,
            low=estimate.low,
            high=estimate.high,
        )

    def cross_fit(self, cost: float) -> Interval:
        """Return the mean gain of the best policy over the best blind choice, and its interval.

        Both are chosen within a mean cost on nine folds, and compared on the tenth. A policy that
        costs more on that fold is compared with a blind choice of the same cost. All are NaN if no
        policy is cheap enough.
        """
        gains = np.empty(len(self.values))
        for fold in self._folds:
            others = np.setdiff1d(np.arange(len(gains)), fold)
            best = self._best(others, cost)
            if best is None:
                return Interval(math.nan, math.nan, math.nan)
            cost_there = max(cost, self._costs[best, fold].mean())
            blind = best_blind(self.values[others].mean(axis=0), self.cost, cost_there)
            gains[fold] = self._scores[best, fold] - blind.scores(self.values[fold])
        return interval(gains, float(np.ptp(self.values, axis=1).max()))

    def _best(self, rows: Ints, cost: float) -> int | None:
        """Return the place of the best policy within a mean cost on some rows; None without one."""
        costs = self._costs[:, rows].mean(axis=1)
        scores = self._scores[:, rows].mean(axis=1)
        is_within = costs <= cost * (1 + 1e-9)
        scores[~is_within] = -np.inf
        if scores.max() == -np.inf:
            return None
        return best_most_expensive(scores, costs)


class Interval(NamedTuple):
    """A mean, and the ends of its 95% interval."""

    mean: float
    low: float
    high: float


def interval(values: Floats, greatest: float) -> Interval:
    """Return the mean of values `(rows,)` and its 95% interval.

    The interval is that of the values with z²/2 rows of +`greatest` and as many of −`greatest`
    added. Without these a few rows that agree would give an interval of no width (Agresti & Coull
    1998).
    """
    size = len(values) + _Z**2
    mean = float(values.sum()) / size
    variance = ((values**2).sum() + _Z**2 * greatest**2) / size - mean**2
    error = math.sqrt(variance) / math.sqrt(size)
    return Interval(float(values.mean()), mean - _Z * error, mean + _Z * error)


class BlindChoice(NamedTuple):
    """A coin between two steps.

    Args:
        low: Place of the earlier step, from 0.
        high: Place of the later step; the same for a single step.
        share: The share of rows that exit at the later step.
    """

    low: int
    high: int
    share: float

    def scores(self, values: Floats) -> Floats:
        """Return the expected score of each row, `(rows,)`, from scores `(rows, steps)`."""
        return (1.0 - self.share) * values[:, self.low] + self.share * values[:, self.high]


def best_blind(scores: Floats, cost: Floats, at: float) -> BlindChoice:
    """Return the best blind choice within a mean cost `at`.

    It is a single step that costs no more, or a coin between two steps with just that mean cost. A
    coin that costs less need not be tried: a single step, or a coin of the whole cost, is as good.
    """
    # All pairs of steps; a pair of one step with itself is a single step.
    low, high = np.triu_indices(len(cost))
    difference = cost[high] - cost[low]
    costs_differ = difference > 0
    # The share of rows at the later step with which the coin costs just `at`.
    share = np.zeros(len(difference))
    share[costs_differ] = (at - cost[low[costs_differ]]) / difference[costs_differ]
    is_within = at >= cost[low] * (1 - 1e-9)
    is_possible = is_within & (share <= 1.0)
    score_of_pair = (1.0 - share) * scores[low] + share * scores[high]
    score_of_pair[~is_possible] = -np.inf
    cost_of_pair = cost[low] + share * difference
    best = best_most_expensive(score_of_pair, cost_of_pair)
    return BlindChoice(int(low[best]), int(high[best]), float(share[best]))


def best_most_expensive(scores: Floats, cost: Floats) -> int:
    """Return the place of the best choice; of equally good ones, of the most expensive.

    If few rows distinguish choices, many score the same, and the cheapest of them would be the
    worst for other rows.
    """
    best = scores.max()
    return int(np.where(scores >= best - 1e-12 * abs(best), cost, -np.inf).argmax())
