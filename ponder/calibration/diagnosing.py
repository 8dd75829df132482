"""Diagnosis: do early exits pay on this model? Policies against blind choices, on rows that chose neither."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from statistics import NormalDist
from typing import Any, Literal, TypeAlias

import numpy as np

from ponder._utils.checks import check_real
from ponder._utils.rounding import rounded_down
from ponder.calibration.families import FamilyLike, family_of
from ponder.calibration.records import Floats, Ints, Record, at_exits, check_record, serves
from ponder.calibration.sweeps import Frontier, as_costs, frontier_of
from ponder.errors import ArgumentError
from ponder.policies.certainty import Confidence, Entropy, Margin
from ponder.policies.counting import Patience
from ponder.policies.halting import Quantile

__all__ = ["Diagnosis", "Gain", "StepForAll", "diagnose", "oracle_frontier"]

Outcome: TypeAlias = Literal["exits pay", "one step is as good", "too few rows", "no policy is cheap enough"]
_SHARES = ("accuracy", "exact_match")
_Z = 1.96  # of a 95% interval
_FOLDS = 10


@dataclass(frozen=True)
class Gain:
    """The gain of the best policy over the best blind choice, at one speed-up.

    Policy, threshold and blind choice are chosen on nine tenths of the rows, each the best that the speed-up allows,
    and compared on the last tenth, ten times over; so the choice does not flatter the policy.

    Args:
        speedup: Cost of full depth ÷ mean cost that was asked for; steps where no costs were given.
        policy: The policy that is best on all rows, as text.
        score: Its score on all rows.
        blind: The score of the best blind choice on all rows: one step, or a coin between two.
        oracle: The score of one who knows the labels and is cheap enough.
        gain: Policy minus blind, mean over rows that chose neither; NaN where no policy is cheap enough.
        low: Lower end of its 95% interval.
        high: Upper end.
    """

    speedup: float
    policy: str
    score: float
    blind: float
    oracle: float
    gain: float
    low: float
    high: float

    @property
    def pays(self) -> bool:
        """Whether the gain is above 0 beyond doubt and rounding."""
        return self.low > 1e-12 * max(abs(self.blind), abs(self.oracle))

    def __str__(self) -> str:
        return f"a gain of {self.gain:+.4f}, 95% interval {self.low:+.4f} to {self.high:+.4f}"


@dataclass(frozen=True)
class StepForAll:
    """The first step that all rows may exit at, full depth where none is known to lose at most a margin.

    Args:
        step: The step, from 1.
        score: Its score on these rows.
        full_depth: The score of full depth on them.
        at_least: The least that the step's score minus that of full depth can be on rows to come, with 97.5%
            confidence; of numbers, as long as no row loses more than one of these does.
        margin: The most that may be lost.
    """

    step: int
    score: float
    full_depth: float
    at_least: float
    margin: float


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """One page that answers "should I let examples exit early?".

    Args:
        metric: Name of the score, the higher the better.
        scores: The score at each step, `(steps,)`.
        frontiers: Frontiers by name: each policy tried, ``"blind"`` and ``"oracle"``.
        gains: Policy against blind at each speed-up.
        step_for_all: The step that all rows may exit at.
        overthinking: The share of rows that are best before the last step (Kaya et al. 2019).
        collapse: The commonest exit step of Q-exit with q = 0.5, and the share of rows that exit there: nine in ten or
            more are a collapse of the halting distribution. None without a Lambda head.
        rows: Number of rows.

    Example:
        >>> diagnosis = ponder.diagnose(trajectory)
        >>> [round(score, 2) for score in diagnosis.scores]  # of each step
        [0.33, 0.67, 1.0, 1.0]
        >>> diagnosis.gains[0].speedup, round(diagnosis.gains[0].score, 2)  # the best policy at 1.5 times fewer steps
        (1.5, 1.0)
        >>> diagnosis.outcome
        'exits pay'
    """

    metric: str
    scores: tuple[float, ...]
    frontiers: Mapping[str, Frontier]
    gains: tuple[Gain, ...]
    step_for_all: StepForAll
    overthinking: float
    collapse: tuple[int, float] | None
    rows: int

    @property
    def outcome(self) -> Outcome:
        """The answer for a program to ask."""
        known = [gain for gain in self.gains if not math.isnan(gain.gain)]
        if not known:
            return "no policy is cheap enough"
        if any(gain.pays for gain in known):
            return "exits pay"
        wide = any(gain.high > self.step_for_all.margin for gain in known)
        return "too few rows" if wide else "one step is as good"

    @property
    def verdict(self) -> str:
        """The outcome in one sentence, with its uncertainty."""
        known = [gain for gain in self.gains if not math.isnan(gain.gain)]
        fixed = self.step_for_all
        use = f"use full depth, which scores {fixed.full_depth:.4f}: earlier steps may lose over {fixed.margin:.4g}."
        if fixed.step < len(self.scores):
            use = (
                f"use FixedStep({fixed.step}), which scores {fixed.score:.4f} where full depth scores "
                f"{fixed.full_depth:.4f} (with 97.5% confidence {rounded_down(fixed.at_least, 3)} or more above it)."
            )
        if self.outcome == "no policy is cheap enough":
            return f"No policy that was tried is cheap enough for any of the speed-ups: {use}"
        best = max(known, key=lambda gain: (gain.pays, gain.gain))
        won = f"over the best blind choice at ×{best.speedup:g} the best policy has {best}"
        if self.outcome == "too few rows":
            return f"These {self.rows} rows cannot tell whether early exits pay on this model: {won}. Record more rows."
        if self.outcome == "one step is as good":
            return f"On this model one fixed step is as good as any policy tried ({won}): {use}"
        return (
            f"Early exits pay on this model: at ×{best.speedup:g} {best.policy} scores {best.score:.4f} "
            f"({self.metric.replace('_', ' ')}; {fixed.full_depth:.4f} at full depth) where the best blind choice "
            f"scores {best.blind:.4f} ({best})."
        )

    def __repr__(self) -> str:
        return f"Diagnosis({self.outcome}, {self.rows} rows: {self.verdict})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; NaN becomes None."""
        plain: dict[str, Any] = _plain({"outcome": self.outcome, "verdict": self.verdict, **vars(self)})
        return plain

    def __str__(self) -> str:
        """Return the diagnosis as a page of text."""
        scores = "  ".join(f"{n}: {score:.4g}" for n, score in enumerate(self.scores, start=1))
        lines = [self.verdict, "", f"{self.metric} of each step, on {self.rows} rows:", f"  {scores}", ""]
        lines.append("speed-up  score   blind   oracle  gain [95% interval]         best policy")
        for gain in self.gains:
            scores = f"{gain.score:<7.4f} {gain.blind:<7.4f} {gain.oracle:<7.4f}"
            interval = f"{gain.gain:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
            lines.append(f"×{gain.speedup:<8g} {scores} {interval:<27} {gain.policy}")
        lines.append(f"{100 * self.overthinking:.1f}% of the rows are best before the last step (overthinking).")
        if self.collapse is not None:
            step, share = self.collapse
            said = "has collapsed" if share >= 0.9 else "has not collapsed"
            lines.append(
                f"The halting distribution {said}: {share:.0%} of the rows would exit at step {step} (q = 0.5)."
            )
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return None if value != value else value


def diagnose(
    trajectory: Record,
    compare: FamilyLike | Sequence[FamilyLike] | None = None,
    *,
    metric: Any = None,
    speedups: Sequence[float] = (1.5, 2.0, 3.0),
    costs: Sequence[float] | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Say whether early exits pay on a model: whether any policy is better than leaving blindly at the same speed-up.

    Blind is the baseline that matters: one step for all rows, or a coin between two steps, looks at nothing. Only what
    lies above it is the work of a policy.

    Args:
        trajectory: A full-depth run, with labels, on rows that chose nothing.
        compare: Classes of policies with a threshold, or policies whose threshold is moved; those of the papers that
            the record serves where None.
        metric: A mean over rows: ``"accuracy"``, ``"exact_match"``, ``"negative_squared_error"``, or the task's own
            where None.
        speedups: Cost of full depth ÷ mean cost at which policy and blind are compared.
        costs: Cost of exiting after each step, `(steps,)`; n where None.
        seed: Seed of the folds.

    Example:
        >>> print(diagnose(trajectory, policies.Confidence).metric)
        accuracy
    """
    check_record(trajectory)
    for speedup in speedups:
        check_real("speedups", speedup, 1.0)
    metric_name, values = trajectory.score_name(metric), trajectory.score_table(metric)
    if values is None or len(values) < 20 or values.shape[1] < 2 or not np.isfinite(values).all():
        raise ArgumentError(
            "trajectory",
            expected="at least 20 rows and 2 steps, with a finite score that is a mean over rows",
            got=f"{len(trajectory)} rows, {trajectory.num_steps} steps, {metric_name}",
            remedy="Record more of the data, or pass metric='accuracy'.",
        )
    cost = as_costs(costs, trajectory.num_steps)
    shares = metric_name in _SHARES
    points, exits = _tried(trajectory, compare, values, cost)
    scores = values.mean(0).tolist()
    frontiers = {name: frontier_of(each) for name, each in points.items()}
    names = list(frontiers)
    frontiers["blind"] = frontier_of(
        [(c, s, f"FixedStep(step={n})") for n, (c, s) in enumerate(zip(cost.tolist(), scores, strict=True), 1)],
        hull=True,
    )
    frontiers["oracle"] = oracle_frontier(values, cost)
    cross = _CrossFit(values, cost, exits, seed)
    reached = [speedup for speedup in speedups if speedup <= cost[-1] / cost[0]]
    collapse = None
    if serves(trajectory, Quantile(0.5)):
        counts = np.bincount(trajectory.exit_steps(Quantile(0.5)))
        collapse = int(counts.argmax()), float(counts.max() / len(trajectory))
    margin = 0.03 if shares else 0.1 * (max(scores) - min(scores))
    return Diagnosis(
        metric=metric_name,
        scores=tuple(scores),
        frontiers=frontiers,
        gains=tuple(_gain(speedup, frontiers, names, cross) for speedup in reached),
        step_for_all=_step_for_all(values, margin, shares=shares),
        overthinking=float((values.max(1) > values[:, -1]).mean()),
        collapse=collapse,
        rows=len(trajectory),
    )


def _tried(
    trajectory: Record, compare: Any, values: Floats, cost: Floats
) -> tuple[dict[str, list[tuple[float, float, str]]], Ints]:
    """Return points (cost, score, policy) of each family of policies by its name, and the exits of all, one a row."""
    if compare is None:
        tried = (Confidence(0.5), Margin(0.5), Entropy(0.5), Patience(1, tolerance=1.0), Quantile(0.5))
        likes = [type(policy) for policy in tried if serves(trajectory, policy)]
    else:
        likes = list(compare) if isinstance(compare, Sequence) else [compare]
    points: dict[str, list[tuple[float, float, str]]] = {}
    exits = []
    for like in likes:
        family = family_of(like, None, trajectory, look=True, argument="compare")
        name = getattr(like, "__name__", type(like).__name__)
        name = name if name not in points else f"{name} ({len(points)})"
        points[name] = []
        for places, steps in family.exit_steps(trajectory):
            exits.append(steps)
            spent, score = at_exits(cost, steps).mean(1).tolist(), at_exits(values, steps).mean(1).tolist()
            made = [repr(family.build(family.values[place])) for place in places]
            points[name] += zip(spent, score, made, strict=True)
    return points, np.concatenate(exits)


def _gain(speedup: float, frontiers: Mapping[str, Frontier], tried: Sequence[str], cross: _CrossFit) -> Gain:
    cost = cross.cost[-1] / speedup
    places = {name: frontiers[name].best_within(cost) for name in tried}
    found = [(frontiers[name].scores[p], frontiers[name].names[p]) for name, p in places.items() if p is not None]
    score, policy = max(found, default=(math.nan, f"none within a cost of {cost:.2f}"))
    blind, oracle = frontiers["blind"].mixed(cost), frontiers["oracle"].mixed(cost)
    return Gain(speedup, policy, score, blind, oracle, *cross.gain(cost))


class _CrossFit:
    """Policy against blind on each fold of the rows, with all choices made on the other folds.

    From the worth of answers `(rows, steps)`, costs `(steps,)` and exit steps of all policies tried `(policies, rows)`.
    """

    def __init__(self, values: Floats, cost: Floats, exits: Ints, seed: int) -> None:
        self.values, self.cost = values, cost
        self._scores, self._spent = at_exits(values, exits), at_exits(cost, exits)
        self._folds = np.array_split(np.random.default_rng(seed).permutation(len(values)), _FOLDS)

    def gain(self, cost: float) -> tuple[float, float, float]:
        """Return policy minus the best blind choice at a cost, and the ends of its interval; NaN where none fits.

        A policy that costs more than that on the fold where it is judged is compared with blind at what it costs there.
        """
        won = np.empty(len(self.values))
        for fold in self._folds:
            others = np.setdiff1d(np.arange(len(won)), fold)
            score, spent = self._scores[:, others].mean(1), self._spent[:, others].mean(1)
            affordable = np.where(spent <= cost * (1 + 1e-9), score, -np.inf)
            if affordable.max() == -np.inf:
                return math.nan, math.nan, math.nan
            chosen = best_and_dearest(affordable, spent)
            low, high, share = best_blind(
                self.values[others].mean(0), self.cost, max(cost, self._spent[chosen, fold].mean())
            )
            blind = (1.0 - share) * self.values[fold, low] + share * self.values[fold, high]
            won[fold] = self._scores[chosen, fold] - blind
        greatest = float(np.ptp(self.values, axis=1).max())
        mean, error = interval(won, _Z, greatest)
        return float(won.mean()), float(mean - _Z * error), float(mean + _Z * error)


def interval(values: Floats, z: float, greatest: Any) -> tuple[Any, Any]:
    """Return mean and standard error, `(…,)`, over rows `(rows, …)` and z²/2 rows more at either end, ±`greatest`.

    Without these, a few rows that agree would promise that all do (Agresti & Coull 1998).
    """
    size = len(values) + z**2
    mean = values.sum(0) / size
    return mean, np.sqrt(((values**2).sum(0) + z**2 * greatest**2) / size - mean**2) / np.sqrt(size)


def best_blind(scores: Floats, cost: Floats, at: float) -> tuple[int, int, float]:
    """Return the best blind choice within a mean cost: two steps, and the share of rows at the second.

    It is a single step that costs no more, or a coin between two steps with that mean. No other coin can be better: one
    that costs less lies below a single step or below a coin with the whole mean.
    """
    low, high = np.triu_indices(len(cost))  # a pair of one and the same is a single step
    apart = cost[high] - cost[low]
    share = np.where(apart > 0, (at - cost[low]) / np.where(apart > 0, apart, 1.0), 0.0)
    possible = (at >= cost[low] * (1 - 1e-9)) & (share <= 1.0)
    mixed = np.where(possible, (1.0 - share) * scores[low] + share * scores[high], -np.inf)
    best = best_and_dearest(mixed, cost[low] + share * apart)
    return int(low[best]), int(high[best]), float(share[best])


def best_and_dearest(scores: Floats, cost: Floats) -> int:
    """Return the place of the best choice, of equal ones the dearest.

    Where few rows distinguish choices, many score the same; the earliest of them would be the worst for other rows.
    """
    best = scores.max()
    return int(np.where(scores >= best - 1e-12 * abs(best), cost, -np.inf).argmax())


def oracle_frontier(values: Floats, cost: Floats) -> Frontier:
    """Return the frontier of one who knows the worth of every answer, `(rows, steps)`: no policy lies above.

    Each row climbs the upper hull of its own values, and the steepest climbs of all rows come first: as many as a mean
    cost allows are the best that can be had for it. Of more than a thousand corners a thousand are kept.
    """
    rows, num_steps = values.shape
    at, slopes, climbs = np.zeros(rows, dtype=np.intp), [], []
    for _ in range(num_steps - 1):
        here = values[np.arange(rows), at][:, None]
        apart = cost - cost[at][:, None]
        slope = np.where(apart > 0, (values - here) / np.where(apart > 0, apart, 1.0), -np.inf)
        to = slope.argmax(1)
        steepest = slope.max(1)
        rising = steepest > 0.0
        slopes.append(steepest[rising])
        climbs.append((cost[to] - cost[at])[rising])
        at = np.where(rising, to, at)
    slope, climb = np.concatenate(slopes), np.concatenate(climbs)
    order = np.argsort(slope)
    slope, climb = slope[order], climb[order]
    above = np.append(0.0, np.cumsum(slope * climb))[:-1]  # summed from the least, beside which others would be rounded
    first = np.append(True, np.diff(slope) > 0)[: len(slope)]  # corners of equal slope are one
    spent = cost[0] + climb[::-1].cumsum()[::-1] / rows
    corners = np.stack([spent, values.max(1).mean() - above / rows, slope], axis=1)[first][::-1]
    shown = np.linspace(0, len(corners) - 1, min(len(corners), 1000)).round().astype(np.intp)
    points = [(float(cost[0]), float(values[:, 0].mean()), "oracle(price=inf)")]
    points += [(c, s, f"oracle(price={price:.4g})") for c, s, price in corners[shown].tolist()]
    return frontier_of(points, hull=True)


def _step_for_all(values: Floats, margin: float, *, shares: bool) -> StepForAll:
    """Return the first step that is not clearly worse than any other, and known to lose at most a margin.

    Clearly worse is by more than 1.96 standard errors, row by row. The least by which a step is above full depth holds
    for all steps at once with 97.5% confidence (Bonferroni). Of numbers, the greatest loss of any row at any step is
    taken for the greatest that there is.
    """
    rows, num_steps = values.shape
    clearly_worse = np.zeros(num_steps, dtype=bool)
    for other in (int(values.mean(0).argmax()), num_steps - 1):
        worse = values[:, other, None] - values
        clearly_worse |= worse.mean(0) > _Z * worse.std(0, ddof=1) / math.sqrt(rows)
    above = values - values[:, -1:]
    z = NormalDist().inv_cdf(1.0 - 0.025 / (num_steps - 1))
    mean, error = interval(above, z, 1.0 if shares else float(np.abs(above).max()))
    at_least = mean - z * error
    known = ~clearly_worse & (at_least >= -margin)
    known[-1], at_least[-1] = True, 0.0
    place = int(known.argmax())
    scores = values.mean(0).tolist()
    return StepForAll(place + 1, scores[place], scores[-1], float(at_least[place]), margin)
