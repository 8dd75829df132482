"""Diagnosis: do early exits pay on this model? Policies are compared with blind choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

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


@dataclass(frozen=True)
class Gain:
    """The gain of the best policy over the best blind choice, at one speed-up.

    Policy, threshold and blind choice are chosen on nine tenths of the rows, each the best that the
    speed-up allows, and compared on the last tenth, ten times over; so the choice does not flatter
    the policy.

    Args:
        speedup: Cost of full depth ÷ the mean cost that is allowed; in steps by default.
        policy: The policy that is best on all rows, as text.
        score: Its score on all rows; NaN if no policy is cheap enough.
        blind: The score of the best blind choice on all rows: one step, or a coin between two.
        gain: Policy minus blind, mean over rows that chose neither.
        low: Lower end of its 95% interval.
        high: Upper end.
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
        """Whether the gain is above 0 beyond doubt and rounding."""
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
        >>> diagnosis.gains[0].speedup, round(diagnosis.gains[0].score, 2)  # the best at ×1.5
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
        """The answer for a program to ask."""
        known = [gain for gain in self.gains if not math.isnan(gain.gain)]
        if not known:
            return "no policy is cheap enough"
        if any(gain.pays for gain in known):
            return "exits pay"
        margin = 0.03 if self.metric in _SHARES else 0.1 * (max(self.scores) - min(self.scores))
        if any(gain.high > margin for gain in known):
            return "too few rows"
        return "one step is as good"

    @property
    def verdict(self) -> str:
        """The outcome in one sentence, with its uncertainty."""
        if self.outcome == "no policy is cheap enough":
            return "No policy that was tried is cheap enough for any of the speed-ups."
        known = [gain for gain in self.gains if not math.isnan(gain.gain)]
        best = max(known, key=lambda gain: (gain.pays, gain.gain))
        won = f"over the best blind choice at ×{best.speedup:g} the best policy has {best}"
        if self.outcome == "too few rows":
            return (
                f"These {self.rows} rows cannot tell whether early exits pay on this model: {won}. "
                "Record more rows."
            )
        if self.outcome == "one step is as good":
            return f"On this model one fixed step is as good as any policy tried: {won}."
        return (
            f"Early exits pay on this model: at ×{best.speedup:g} {best.policy} scores "
            f"{best.score:.4f} ({self.metric.replace('_', ' ')}; {self.scores[-1]:.4f} at full "
            "depth) where the best blind choice "
            f"scores {best.blind:.4f} ({best})."
        )

    def __str__(self) -> str:
        return self.verdict

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; NaN becomes None."""
        gains = [
            {name: None if v != v else v for name, v in vars(gain).items()} for gain in self.gains
        ]
        found = {
            "outcome": self.outcome,
            "verdict": self.verdict,
            "metric": self.metric,
            "rows": self.rows,
        }
        return {**found, "scores": list(self.scores), "gains": gains}


def diagnose(
    trajectory: Record,
    compare: FamilyLike | Sequence[FamilyLike] | None = None,
    *,
    metric: Any = None,
    speedups: Sequence[float] = (1.5, 2.0, 3.0),
    costs: Sequence[float] | None = None,
) -> Diagnosis:
    """Test whether any policy is better than a blind choice of steps at the same speed-up.

    The blind baseline is one step for all rows, or a random choice between two steps, which ignores
    the inputs. Only a score above it is the merit of a policy.

    Args:
        trajectory: A full-depth run, with labels, on rows that chose nothing.
        compare: Classes of policies with a threshold, or policies whose threshold is moved; those
            of the papers that the record serves where None.
        metric: A mean over rows: ``"accuracy"``, ``"exact_match"``, ``"negative_squared_error"``,
            or the task's by default.
        speedups: Cost of full depth ÷ mean cost at which policy and blind are compared.
        costs: Cost of exiting after each step, `(steps,)`. By default n.

    Example:
        >>> print(diagnose(trajectory, policies.Confidence).metric)
        accuracy
    """
    check_record(trajectory)
    for speedup in speedups:
        check_real("speedups", speedup, 1.0)
    name = trajectory.score_name(metric)
    values = trajectory.score_table(metric)
    if values is None or len(values) < 20 or values.shape[1] < 2 or not np.isfinite(values).all():
        expected = "at least 20 rows and 2 steps, with a finite score that is a mean over rows"
        got = f"{len(trajectory)} rows, {trajectory.num_steps} steps, {name}"
        remedy = "Record more of the data, or pass metric='accuracy'."
        raise ArgumentError("trajectory", expected=expected, got=got, remedy=remedy)
    cost = as_costs(costs, trajectory.num_steps)
    tried = _Tried(values, cost, *_exits_of(trajectory, compare))
    gains = tuple(tried.gain(speedup) for speedup in speedups if speedup * cost[0] <= cost[-1])
    return Diagnosis(name, tuple(values.mean(0).tolist()), gains, len(trajectory))


def _exits_of(trajectory: Record, compare: Any) -> tuple[Ints, list[str]]:
    """Return the exits at every threshold of every family, one a row, and the policies as text."""
    if compare is None:
        known = (
            Confidence(0.5),
            Margin(0.5),
            Entropy(0.5),
            Patience(1, tolerance=1.0),
            Quantile(0.5),
        )
        likes: list[Any] = [type(policy) for policy in known if serves(trajectory, policy)]
    else:
        likes = list(compare) if isinstance(compare, Sequence) else [compare]
    exits = []
    names = []
    for like in likes:
        family = family_of(like, None, trajectory, look=True, argument="compare")
        for places, steps in family.exit_steps(trajectory):
            exits.append(steps)
            names += [repr(family.build(family.values[place])) for place in places]
    return np.concatenate(exits), names


class _Tried:
    """Policies and blind choices on all rows and on folds of them.

    Args:
        values: The worth of the answers, `(rows, steps)`.
        cost: Cost of exiting after each step, `(steps,)`.
        exits: Exit steps of all policies, `(policies, rows)`.
        names: The policies as text.
    """

    def __init__(self, values: Floats, cost: Floats, exits: Ints, names: Sequence[str]) -> None:
        self.values = values
        self.cost = cost
        self.names = names
        self._scores = at_exits(values, exits)
        self._spent = at_exits(cost, exits)
        self._folds = np.array_split(np.random.default_rng(0).permutation(len(values)), _FOLDS)

    def gain(self, speedup: float) -> Gain:
        """Compare the best policy with the best blind choice at a speed-up."""
        cost = float(self.cost[-1]) / speedup
        rows = np.arange(len(self.values))
        low, high, share = best_blind(self.values.mean(0), self.cost, cost)
        blind = float(
            (1.0 - share) * self.values[:, low].mean() + share * self.values[:, high].mean()
        )
        best = self._best(rows, cost)
        if best is None:
            return Gain(
                speedup, f"none within a cost of {cost:.2f}", math.nan, blind, *[math.nan] * 3
            )
        return Gain(
            speedup,
            self.names[best],
            float(self._scores[best].mean()),
            blind,
            *self.cross_fit(cost),
        )

    def cross_fit(self, cost: float) -> tuple[float, float, float]:
        """Return policy minus best blind choice at a mean cost, with its interval, or NaN.

        A policy that costs more on the fold where it is judged is compared with blind at its cost
        there.
        """
        won = np.empty(len(self.values))
        for fold in self._folds:
            others = np.setdiff1d(np.arange(len(won)), fold)
            best = self._best(others, cost)
            if best is None:
                return math.nan, math.nan, math.nan
            at = max(cost, self._spent[best, fold].mean())
            low, high, share = best_blind(self.values[others].mean(0), self.cost, at)
            blind = (1.0 - share) * self.values[fold, low] + share * self.values[fold, high]
            won[fold] = self._scores[best, fold] - blind
        return interval(won, float(np.ptp(self.values, axis=1).max()))

    def _best(self, rows: Ints, cost: float) -> int | None:
        """Return the place of the best policy within a mean cost on some rows."""
        spent = self._spent[:, rows].mean(1)
        score = np.where(spent <= cost * (1 + 1e-9), self._scores[:, rows].mean(1), -np.inf)
        return best_and_dearest(score, spent) if score.max() > -np.inf else None


def interval(values: Floats, greatest: float) -> tuple[float, float, float]:
    """Return the mean of values `(rows,)` and its interval, with z²/2 pseudo-rows a side.

    Without these, a few rows that agree would promise that all do (Agresti & Coull 1998).
    """
    size = len(values) + _Z**2
    mean = float(values.sum()) / size
    error = math.sqrt(((values**2).sum() + _Z**2 * greatest**2) / size - mean**2) / math.sqrt(size)
    return float(values.mean()), mean - _Z * error, mean + _Z * error


def best_blind(scores: Floats, cost: Floats, at: float) -> tuple[int, int, float]:
    """Return the best blind choice within a mean cost: two steps, and the share of the second.

    It is a single step that costs no more, or a coin between two steps with that mean. No other
    coin can be better: one that costs less lies below a single step or below a coin with the whole
    mean.
    """
    low, high = np.triu_indices(len(cost))  # a pair of one and the same is a single step
    apart = cost[high] - cost[low]
    share = np.where(apart > 0, (at - cost[low]) / np.where(apart > 0, apart, 1.0), 0.0)
    possible = (at >= cost[low] * (1 - 1e-9)) & (share <= 1.0)
    mixed = np.where(possible, (1.0 - share) * scores[low] + share * scores[high], -np.inf)
    best = best_and_dearest(mixed, cost[low] + share * apart)
    return int(low[best]), int(high[best]), float(share[best])


def best_and_dearest(scores: Floats, cost: Floats) -> int:
    """Return the place of the best choice, of equal ones the most expensive.

    Where few rows distinguish choices, many score the same; the earliest of them would be the worst
    for other rows.
    """
    best = scores.max()
    return int(np.where(scores >= best - 1e-12 * abs(best), cost, -np.inf).argmax())
