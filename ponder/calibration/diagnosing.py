"""Diagnosis: do early exits pay on this model? Policies against blind choices, on rows that chose neither."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any, Literal, TypeAlias

import numpy as np

from ponder._utils.checks import check_int, check_real
from ponder._utils.rounding import rounded_down
from ponder.calibration.families import FamilyLike, Floats, Ints, Record, at_exits, check_record, family_of, serves
from ponder.calibration.sweeps import Frontier, as_costs, frontier_of
from ponder.calibration.temperatures import as_array
from ponder.errors import ArgumentError
from ponder.policies.certainty import Confidence, Entropy, Margin
from ponder.policies.counting import Converged, Patience
from ponder.policies.halting import Quantile

__all__ = ["Collapse", "Diagnosis", "Gain", "StepForAll", "diagnose", "oracle_frontier"]

Outcome: TypeAlias = Literal["exits pay", "one step is as good", "too few rows", "no policy is cheap enough"]
_SHARES = ("accuracy", "exact_match")
_Z = 1.96  # of a 95% interval
_SPREAD = math.sqrt(math.e - 1.0)  # of means of n/e of n rows, beside that of means of n: √(e/n − 1/n) and √(1/n)
_SAMPLES_AT_ONCE = 50


@dataclass(frozen=True)
class Gain:
    """The gain of the best policy over the best blind choice, at one speed-up.

    Policy, threshold and blind choice are chosen on one bootstrap sample of the rows, each the best that the speed-up
    allows, and compared on the rows outside the sample; so the choice does not flatter the policy.

    Args:
        speedup: Cost of full depth ÷ mean cost that was asked for; of steps where no costs were given.
        policy: The policy that is best on all rows, as text.
        score: Its score on all rows.
        blind: The score of the best blind choice on all rows: one step, or a coin between two.
        oracle: The score of one who knows the labels and is cheap enough.
        static: The score of the encoder cut there and trained so, where it was given; else NaN.
        gain: Policy minus blind, mean over the bootstrap samples; NaN where no policy is cheap enough.
        low: Lower end of its 95% interval: the quantile over the samples, drawn by 1/√(e − 1) towards the gain on all
            rows, since the rows outside are fewer and spread so much more; and then as far away as with z²/2 rows more
            of the greatest gain that a row can have and as many of the greatest loss, since samples of rows of which
            few decide know no others (as in Agresti & Coull 1998).
        high: Upper end, likewise.
    """

    speedup: float
    policy: str
    score: float
    blind: float
    oracle: float
    static: float
    gain: float
    low: float
    high: float

    @property
    def headroom(self) -> float:
        """The most that a policy could gain at this speed-up: oracle minus blind."""
        return self.oracle - self.blind

    @property
    def pays(self) -> bool:
        """Whether the gain is above 0 beyond doubt and rounding."""
        return self.low > 1e-12 * max(abs(self.blind), abs(self.oracle))


@dataclass(frozen=True)
class StepForAll:
    """The step that all rows may exit at, and what is known of it against full depth.

    Args:
        step: The step, from 1; full depth where no earlier one is known to lose no more than the margin.
        score: Its score on these rows.
        full_depth: The score of full depth on them.
        change: The mean over the rows of what the step's answer is worth above that of full depth.
        at_least: The least that this can be on rows to come, with 97.5% confidence; of numbers, as long as no row
            loses more than one of these does.
        margin: The most that may be lost.
    """

    step: int
    score: float
    full_depth: float
    change: float
    at_least: float
    margin: float


@dataclass(frozen=True)
class Collapse:
    """Whether the halting distribution has collapsed onto one step for all rows.

    Args:
        step: The commonest exit step of Q-exit with q = 0.5.
        share: The share of rows that exit there.
        information: Mutual information between row and halting step, as a share of log N: 0 where all rows have the
            same distribution.
    """

    step: int
    share: float
    information: float

    @property
    def collapsed(self) -> bool:
        """Whether nine rows in ten exit at one step, or the distribution carries next to no information."""
        return self.share >= 0.9 or self.information < 0.01


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """One page that answers "should I let examples exit early?".

    Args:
        metric: Name of the score, the higher the better.
        scores: The score at each step, `(steps,)`.
        frontiers: The frontiers by name: each policy tried, ``"blind"``, ``"oracle"``, and ``"static"`` where it was
            given.
        gains: Policy against blind at each speed-up.
        step_for_all: The step that all rows may exit at.
        overthinking: The share of rows that are best before the last step (Kaya et al. 2019): right somewhere, wrong
            at the end.
        collapse: The collapse of the halting distribution; None without a Lambda head.
        rows: Number of rows.

    Example:
        >>> diagnosis = ponder.diagnose(trajectory, samples=50)
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
    collapse: Collapse | None
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
        use = (
            f"use FixedStep({fixed.step}), which scores {fixed.score:.4f} where full depth scores "
            f"{fixed.full_depth:.4f} ({fixed.change:+.4f}, with 97.5% confidence {rounded_down(fixed.at_least, 3)} or "
            "more)"
            if fixed.step < len(self.scores)
            else f"use full depth, which scores {fixed.full_depth:.4f}: each earlier step may be worse by more than "
            f"{fixed.margin:.4g}"
        )
        match self.outcome:
            case "exits pay":
                best = max((gain for gain in known if gain.pays), key=lambda gain: gain.gain)
                verdict = (
                    f"Early exits pay on this model: at ×{best.speedup:g} {best.policy} scores {best.score:.4f} "
                    f"({self.metric.replace('_', ' ')}; {fixed.full_depth:.4f} at full depth) where the best blind "
                    f"choice scores {best.blind:.4f} ({_interval(best)})"
                )
            case "too few rows":
                best = max(known, key=lambda gain: gain.high)
                verdict = (
                    f"These {self.rows} rows cannot tell whether early exits pay on this model: over blind at "
                    f"×{best.speedup:g} a policy has {_interval(best)}. Record more rows"
                )
            case "one step is as good":
                best = max(known, key=lambda gain: gain.gain)
                verdict = (
                    "On this model one fixed step is as good as any policy tried (the largest over blind, at "
                    f"×{best.speedup:g}, has {_interval(best)}): {use}"
                )
            case "no policy is cheap enough":
                verdict = f"No policy that was tried is cheap enough for any of the speed-ups: {use}"
        cuts = [gain for gain in self.gains if gain.static > np.fmax(gain.score, gain.blind)]
        for cut in cuts[:1]:
            verdict += f"; but at ×{cut.speedup:g} the encoder cut and trained so scores {cut.static:.4f}"
        return f"{verdict}."

    def __repr__(self) -> str:
        return f"Diagnosis({self.outcome}, {self.rows} rows: {self.verdict})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; NaN becomes None."""
        made = {name: getattr(self, name) for name in ("outcome", "verdict", "metric", "rows", "overthinking")}
        made |= {"scores": list(self.scores), "step_for_all": asdict(self.step_for_all)}
        made["frontiers"] = {name: asdict(frontier) for name, frontier in self.frontiers.items()}
        made["gains"] = [
            {name: None if value != value else value for name, value in asdict(gain).items()} for gain in self.gains
        ]
        made["collapse"] = None if self.collapse is None else asdict(self.collapse)
        return made

    def __str__(self) -> str:
        """Return the diagnosis as a page of text."""
        scores = "  ".join(f"{n}: {score:.4g}" for n, score in enumerate(self.scores, start=1))
        lines = [self.verdict, "", f"{self.metric} of each step, on {self.rows} rows:", f"  {scores}", ""]
        lines.append("speed-up  best policy                       score   blind   gain [95% interval]        oracle")
        for gain in self.gains:
            interval = f"{gain.gain:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
            lines.append(
                f"×{gain.speedup:<8g} {gain.policy:<33} {gain.score:<7.4f} {gain.blind:<7.4f} {interval:<26} "
                f"{gain.oracle:.4f}"
            )
        lines.append(f"{100 * self.overthinking:.1f}% of the rows are best before the last step (overthinking).")
        if self.collapse is not None:
            lines.append(
                f"The halting distribution has {'' if self.collapse.collapsed else 'not '}collapsed onto one step: "
                f"{100 * self.collapse.share:.0f}% of the rows would exit at step {self.collapse.step} (q = 0.5); it "
                f"carries {100 * self.collapse.information:.1f}% of the information that it could."
            )
        return "\n".join(lines)


def diagnose(
    trajectory: Record,
    compare: FamilyLike | Sequence[FamilyLike] | None = None,
    *,
    static: Mapping[int, float] | None = None,
    metric: Any = None,
    speedups: Sequence[float] = (1.5, 2.0, 3.0),
    costs: Sequence[float] | None = None,
    samples: int = 500,
    seed: int = 0,
) -> Diagnosis:
    """Say whether early exits pay on a model: whether any policy is better than leaving blindly at the same speed-up.

    Blind is the baseline that matters: one step for all rows, or a coin between two steps, looks at nothing. Only what
    lies above it is the work of a policy; and only what lies above an encoder that was cut and trained so (`static`)
    pays over training a smaller one.

    Args:
        trajectory: A full-depth run, with labels, on rows that chose nothing.
        compare: Classes of policies with a threshold, or policies whose threshold is moved; those of the papers that
            the record serves where None.
        static: Scores of the encoder cut after a step and trained so, by step.
        metric: A mean over rows: ``"accuracy"``, ``"exact_match"``, ``"negative_squared_error"``, or the task's own
            where None.
        speedups: Cost of full depth ÷ mean cost at which policy and blind are compared.
        costs: Cost of exiting after each step, `(steps,)`; n where None.
        samples: Bootstrap samples, at least 40.
        seed: Seed of the bootstrap.

    Example:
        >>> print(diagnose(trajectory, policies.Confidence, samples=40).metric)
        accuracy
    """
    check_record(trajectory)
    check_int("samples", samples, 40, remedy="Pass samples=500: fewer than 40 have no 2.5% at either end.")
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
    if static:
        frontiers["static"] = frontier_of([(cost[n - 1], s, f"cut after step {n}") for n, s in static.items()])
    bootstrap = _Bootstrap(values, cost, exits, samples, seed)
    reached = [speedup for speedup in speedups if speedup <= cost[-1] / cost[0]]
    margin = 0.03 if shares else 0.1 * (max(scores) - min(scores))
    return Diagnosis(
        metric=metric_name,
        scores=tuple(scores),
        frontiers=frontiers,
        gains=tuple(_gain(speedup, cost[-1] / speedup, frontiers, names, bootstrap) for speedup in reached),
        step_for_all=_step_for_all(values, margin, shares=shares),
        overthinking=float((values.max(1) > values[:, -1]).mean()),
        collapse=_collapse(trajectory) if serves(trajectory, Quantile(0.5)) else None,
        rows=len(trajectory),
    )


def _tried(
    trajectory: Record, compare: Any, values: Floats, cost: Floats
) -> tuple[dict[str, list[tuple[float, float, str]]], Ints]:
    """Return points (cost, score, policy) of each family of policies by its name, and the exits of all, one a row."""
    if compare is None:
        tried = (Confidence(0.5), Margin(0.5), Entropy(0.5), Patience(1), Converged(), Quantile(0.5))
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


class _Bootstrap:
    """Policy against blind on the rows outside each sample, with all choices made on the sample.

    Args:
        values: The worth of each row's answer at each step, `(rows, steps)`.
        cost: The cost of each step, `(steps,)`.
        exits: Exit steps under every policy tried, `(policies, rows)`.
        samples: Number of bootstrap samples.
        seed: Seed of the samples.
    """

    def __init__(self, values: Floats, cost: Floats, exits: Ints, samples: int, seed: int) -> None:
        rng, rows, many = np.random.default_rng(seed), len(values), len(exits)
        columns = np.concatenate([at_exits(values, exits).T, at_exits(cost, exits).T, values], axis=1)
        inside, outside = [], []
        for start in range(0, samples, _SAMPLES_AT_ONCE):
            size = min(_SAMPLES_AT_ONCE, samples - start)
            counts = rng.multinomial(rows, np.full(rows, 1 / rows), size=size).astype(np.float64)
            absent = (counts == 0) * 1.0
            inside.append(counts @ columns / rows)
            outside.append(absent @ columns / absent.sum(1, keepdims=True))
        self._cost = cost
        self._inside, self._outside = (np.split(np.concatenate(of), [many, 2 * many], 1) for of in (inside, outside))
        self._all = np.split(np.broadcast_to(columns.mean(0), (samples, columns.shape[1])), [many, 2 * many], 1)
        self._unseen = _Z**2 * float(np.ptp(values, axis=1).max()) / (rows + _Z**2)

    def gain(self, cost: float) -> tuple[float, float, float]:
        """Return policy minus the best blind choice at a cost, and the ends of its interval."""
        score, spent, blind = self._inside
        affordable = np.where(spent <= cost * (1 + 1e-9), score, -np.inf)
        chosen = best_and_dearest(affordable, spent)
        possible = affordable.max(1) > -np.inf

        def gained(scores: Floats, spent: Floats, blind_scores: Floats) -> Floats:
            at = np.maximum(np.take_along_axis(spent, chosen, 1)[:, 0], cost)
            won: Floats = np.take_along_axis(scores, chosen, 1)[:, 0] - blind_mix(blind, blind_scores, self._cost, at)
            return won[possible]

        if not possible.any():
            return math.nan, math.nan, math.nan
        outside, everywhere = gained(*self._outside), gained(*self._all)
        low, high = np.quantile(everywhere + (outside - everywhere) / _SPREAD, [0.025, 0.975])
        middle, apart = (low + high) / 2, math.hypot((high - low) / 2, self._unseen)
        return float(outside.mean()), float(middle - apart), float(middle + apart)


def _gain(
    speedup: float, cost: float, frontiers: Mapping[str, Frontier], tried: Sequence[str], bootstrap: _Bootstrap
) -> Gain:
    places = {name: frontiers[name].best_within(cost) for name in tried}
    found = [(frontiers[name].scores[p], frontiers[name].names[p]) for name, p in places.items() if p is not None]
    score, policy = max(found, key=lambda each: each[0], default=(math.nan, f"none within a cost of {cost:.2f}"))
    cut = frontiers["static"].best_within(cost) if "static" in frontiers else None
    static = math.nan if cut is None else frontiers["static"].scores[cut]
    blind, oracle = frontiers["blind"].mixed(cost), frontiers["oracle"].mixed(cost)
    ends = bootstrap.gain(cost) if found else (math.nan,) * 3
    return Gain(speedup, policy, score, blind, oracle, static, *ends)


def blind_mix(chosen_by: Floats, scores: Floats, cost: Floats, at: Floats) -> Floats:
    """Return the score of the best blind choice within a mean cost, chosen by one set of scores, judged by another.

    It is a single step that costs no more, or a coin between two steps with that mean. No other coin can be better: one
    that costs less lies below a single step or below a coin with the whole mean.

    Args:
        chosen_by: Scores of every step by which the choice is made, `(samples, steps)`.
        scores: Scores of every step by which the choice is judged, `(samples, steps)`.
        cost: Cost of every step, `(steps,)`.
        at: The mean cost of each sample's choice, `(samples,)`.
    """
    low, high = np.triu_indices(len(cost))  # a pair of one and the same is a single step
    ahead, apart = at[:, None] - cost[low], cost[high] - cost[low]
    share = np.where(apart > 0, ahead / np.where(apart > 0, apart, 1.0), 0.0)
    mixed = [of[:, low] * (1.0 - share) + of[:, high] * share for of in (chosen_by, scores)]
    possible = (ahead >= -1e-9 * cost[low]) & (share <= 1.0)
    best = best_and_dearest(np.where(possible, mixed[0], -np.inf), cost[low] + share * apart)
    return np.take_along_axis(mixed[1], best, 1)[:, 0]


def best_and_dearest(scores: Floats, cost: Floats) -> Ints:
    """Return the place of the best choice in each sample, `(samples, 1)`, of equal ones the dearest.

    Where few rows distinguish choices, many score the same; the earliest of them would be the worst for other rows.
    """
    best = scores.max(1, keepdims=True)
    return np.where(scores >= best - 1e-12 * np.abs(best), cost, -np.inf).argmax(1)[:, None]


def oracle_frontier(values: Floats, cost: Floats) -> Frontier:
    """Return the frontier of one who knows the worth of every answer: no policy on these answers lies above.

    Each row climbs the upper hull of its own values, and the steepest climbs of all rows come first: as many as a mean
    cost allows are the best that can be had for it. Of more than a thousand corners a thousand are kept.

    Args:
        values: The worth of each row's answer at each step, `(rows, steps)`, finite; the score is their mean.
        cost: Cost of every step, `(steps,)`.
    """
    rows, num_steps = values.shape
    at, slopes, climbs, gains = np.zeros(rows, dtype=np.intp), [], [], []
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
    """Return the first step that is not clearly worse than full depth or the best step, and known to lose at most a margin.

    It is clearly worse where it is so by more than 1.96 standard errors, row by row. The least by which it is above
    full depth holds for all steps at once with 97.5% confidence (Bonferroni): it is the end of a normal interval with
    z²/2 rows more of the greatest loss that a row can have and as many of the greatest gain (as in Agresti & Coull
    1998), without which a few rows that agree would promise that all do. Of numbers that loss is taken to be the
    greatest of any row at any step.
    """
    rows, num_steps = values.shape
    clearly_worse = np.zeros(num_steps, dtype=bool)
    for other in (int(values.mean(0).argmax()), num_steps - 1):
        worse = values[:, other, None] - values
        clearly_worse |= worse.mean(0) > _Z * worse.std(0, ddof=1) / math.sqrt(rows)
    above = values - values[:, -1:]
    z = NormalDist().inv_cdf(1.0 - 0.025 / (num_steps - 1))
    size, greatest = rows + z**2, 1.0 if shares else float(np.abs(above).max())
    mean = above.sum(0) / size
    variance = ((above**2).sum(0) + z**2 * greatest**2) / size - mean**2
    at_least = mean - z * np.sqrt(variance / size)
    known = ~clearly_worse & (at_least >= -margin)
    known[-1], at_least[-1] = True, 0.0
    place = int(known.argmax())
    scores = values.mean(0).tolist()
    change = float(above[:, place].mean())
    return StepForAll(place + 1, scores[place], scores[-1], change, float(at_least[place]), margin)


def _collapse(trajectory: Record) -> Collapse:
    steps = trajectory.exit_steps(Quantile(0.5))
    counts = np.bincount(steps, minlength=trajectory.num_steps + 1)
    cdf = np.stack([as_array(view.cdf) for view in trajectory.views(frozenset({"hazard"}))], axis=1)
    cdf[:, -1] = 1.0
    p = np.diff(cdf, axis=1, prepend=0.0)

    def entropy(q: Floats) -> Any:
        return -np.where(q > 0, q * np.log(np.maximum(q, 1e-300)), 0.0).sum(-1)

    information = float(entropy(p.mean(0)) - entropy(p).mean()) / math.log(trajectory.num_steps)
    return Collapse(int(counts.argmax()), float(counts.max()) / len(trajectory), max(information, 0.0))


def _interval(gain: Gain) -> str:
    return f"a gain of {gain.gain:+.4f}, 95% interval {gain.low:+.4f} to {gain.high:+.4f}"
