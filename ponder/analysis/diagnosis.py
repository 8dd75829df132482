"""Diagnosis: do early exits pay on this model? Policies against blind choices, with the uncertainty of the data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ponder._utils.validation import check_int, check_real
from ponder.analysis.frontiers import Frontier, blind_frontier, blind_mix, frontier_of, oracle_frontier
from ponder.analysis.metrics import Metric, MetricLike, as_metric
from ponder.analysis.policy_grid import PolicyGrid, PolicyGridLike, as_policy_grid, patience_on_numbers
from ponder.engine.replay import replay
from ponder.errors import ArgumentError
from ponder.parts.recording import Recording, check_evaluated, check_has_rows, check_once
from ponder.plots import frontiers
from ponder.policies import Confidence, Entropy, Margin, Patience, Quantile
from ponder.policies.base import ExitPolicy
from ponder.policies.fitted import check_unfitted

__all__ = ["Collapse", "Diagnosis", "Difficulty", "Gain", "diagnose"]

_TRIED: tuple[type[ExitPolicy], ...] = (Confidence, Margin, Entropy, Patience, Quantile)
_SHARES = ("accuracy", "exact_match")


@dataclass(frozen=True)
class Gain:
    """What the best policy has over the best blind choice, at one speed-up in steps.

    Policy, threshold and blind choice are chosen on one bootstrap sample of the rows and compared on the rows that it
    left out, where the blind choice costs no more than the policy; so the choice does not flatter the policy.

    Args:
        speedup: N / mean exit step that was asked for.
        policy: The one that is best on all rows, as text.
        score: Its score on all rows.
        blind: The score of the best blind choice, on all rows, that costs no more than that policy: one step, or a coin
            between two. Where no policy is cheap enough, one that costs no more than was asked for.
        blind_step: The best single step of those that are cheap enough for the speed-up.
        oracle: The score of one who knows the labels and costs no more than that either.
        static: The score of the encoder cut there, where it was given and costs no more; else NaN.
        gain: Policy minus blind, mean over the bootstrap samples.
        low: 2.5% quantile of that.
        high: 97.5% quantile.
    """

    speedup: float
    policy: str
    score: float
    blind: float
    blind_step: int
    oracle: float
    static: float
    gain: float
    low: float
    high: float

    @property
    def headroom(self) -> float:
        """What a policy could gain at most at this cost: oracle minus blind."""
        return self.oracle - self.blind

    @property
    def share_of_headroom(self) -> float:
        """How much of the headroom the policy gains; NaN where there is none, or no policy."""
        return self.gain / self.headroom if self.headroom > 1e-12 else math.nan


@dataclass(frozen=True)
class Collapse:
    """Whether the halting distribution tells rows apart.

    Args:
        step: The commonest exit step of Q-exit with q = 0.5.
        share: The share of rows that leave there.
        information: Mutual information between row and halting step, as a share of log N: 0 where all rows have the
            same distribution.
    """

    step: int
    share: float
    information: float

    @property
    def collapsed(self) -> bool:
        """Whether it is one step for all: nine rows in ten leave there, or it carries next to no information."""
        return self.share >= 0.9 or self.information < 0.01


@dataclass(frozen=True)
class Difficulty:
    """Rows that are right from the same step on to the end.

    Args:
        step: That step; None for rows that are wrong at the last step.
        share: Their share of all rows.
        mean_exit_step: Mean of the steps at which they leave under the best policy at the middle speed-up.
    """

    step: int | None
    share: float
    mean_exit_step: float


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """One page that answers "should I let examples exit early?".

    Args:
        verdict: The answer, in one sentence, with its uncertainty: exits pay, one fixed step is as good, or so few rows
            cannot tell.
        metric: Name of the score, the higher the better.
        scores: The score at each step, `(steps,)`.
        frontiers: The frontiers by name: each policy tried, ``"blind"``, ``"oracle"``, and ``"static"`` where it was
            given.
        gains: Policy against blind at each speed-up.
        collapse: What is known of a collapse of the halting distribution; None without a Lambda head.
        difficulty: Rows by the step from which they are right; empty where labels do not tell.
        rows: Their number.

    Example:
        >>> diagnosis = ponder.diagnose(trajectory, samples=50)
        >>> [round(score, 2) for score in diagnosis.scores]  # of each step
        [0.33, 0.67, 1.0, 1.0]
        >>> diagnosis.gains[0].speedup, round(diagnosis.gains[0].score, 2)  # the best policy at 1.5 times fewer steps
        (1.5, 1.0)
    """

    verdict: str
    metric: str
    scores: tuple[float, ...]
    frontiers: Mapping[str, Frontier]
    gains: tuple[Gain, ...]
    collapse: Collapse | None
    difficulty: tuple[Difficulty, ...]
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN becomes None."""
        made = {
            **{name: getattr(self, name) for name in ("verdict", "metric", "scores", "rows")},
            "frontiers": {name: dataclasses.asdict(frontier) for name, frontier in self.frontiers.items()},
            "gains": [
                dataclasses.asdict(gain) | {"headroom": gain.headroom, "share_of_headroom": gain.share_of_headroom}
                for gain in self.gains
            ],
            "collapse": None
            if self.collapse is None
            else {**dataclasses.asdict(self.collapse), "collapsed": self.collapse.collapsed},
            "difficulty": [dataclasses.asdict(each) for each in self.difficulty],
        }
        plain: dict[str, Any] = _plain(made)
        return plain

    def plot(self, **options: Any) -> Any:
        """Draw the score against the mean exit step, with a line for each frontier; see `ponder.plots.frontiers`."""
        return frontiers(self, **options)

    def __str__(self) -> str:
        """The diagnosis as a page of text."""
        last = len(self.scores)
        lines = [self.verdict, "", f"{self.metric} of each of {last} steps, on {self.rows} rows:"]
        lines += ["  " + "  ".join(f"{n}: {score:.4g}" for n, score in enumerate(self.scores, start=1)), ""]
        lines.append(
            "speed-up  best policy                          score    blind    gain [95% interval]       oracle"
            "   headroom"
        )
        for gain in self.gains:
            score = "" if math.isnan(gain.score) else f"{gain.score:.4f}"
            interval = f"{gain.gain:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
            interval = "not reached" if math.isnan(gain.gain) else interval
            gained = "" if math.isnan(gain.share_of_headroom) else f" ({100 * gain.share_of_headroom:.0f}% gained)"
            lines.append(
                f"×{gain.speedup:<8g} {gain.policy:<36} {score:<8} {gain.blind:<8.4f} {interval:<25} "
                f"{gain.oracle:<8.4f} {gain.headroom:.4f}{gained}"
                + ("" if math.isnan(gain.static) else f"  cut and trained so: {gain.static:.4f}")
            )
        lines.append(
            "score, blind and oracle are of these rows, on which the best policy was chosen; gain is of rows that "
            "bootstrap samples left out of its choice."
        )
        if self.collapse is not None:
            told = self.collapse
            lines += [
                "",
                f"The halting distribution: {100 * told.share:.0f}% of the rows would leave at step {told.step} "
                f"(q = 0.5); it carries {100 * told.information:.1f}% of the information that it could.",
            ]
        if self.difficulty:
            lines += ["", "Rows by the step from which they are right, and where the policy of the middle row lets go:"]
            for each in self.difficulty:
                what = "wrong at the last step" if each.step is None else f"right from step {each.step} on"
                lines.append(f"  {what:<24} {100 * each.share:5.1f}%  mean exit step {each.mean_exit_step:.2f}")
        return "\n".join(lines)


def diagnose(
    trajectory: Recording,
    compare: PolicyGridLike | Sequence[PolicyGridLike] | None = None,
    *,
    static: Mapping[int, float] | None = None,
    metric: MetricLike | None = None,
    speedups: Sequence[float] = (1.5, 2.0, 3.0),
    samples: int = 500,
    seed: int = 0,
) -> Diagnosis:
    """Say whether early exits pay on a model: whether any policy is better than leaving blindly at no greater cost.

    Blind is the baseline that matters: one step for all rows, or a coin between two steps, looks at nothing. Only what
    lies above it is the work of a policy; and only what lies above an encoder that was cut and trained so (`static`)
    pays over training a smaller one.

    Args:
        trajectory: A full-depth run, with labels, on rows that chose nothing.
        compare: Classes of policies with a threshold, or policies whose threshold is moved; those that the trajectory
            can be replayed with, of the ones that the papers use, where None (of numbers, `Patience(1)` with tolerances
            between the changes of the rows).
        static: Scores of the encoder cut after a step and trained so, by step.
        metric: A mean over rows: ``"accuracy"``, ``"exact_match"`` where a row has several answers,
            ``"negative_squared_error"``, or the task's own where None.
        speedups: N / mean exit step at which policy and blind are compared.
        samples: Bootstrap samples.
        seed: Seed of the bootstrap.

    Raises:
        ArgumentError: No labels, fewer than two steps or 20 rows, a run of training mode, or a metric that is no mean
            over rows.

    Example:
        >>> labels = torch.randint(3, (200,))
        >>> outputs = torch.nn.functional.one_hot(labels, 3).float().unsqueeze(1) * torch.arange(4).view(1, 4, 1)
        >>> trajectory = Trajectory(outputs + torch.randn(200, 4, 3), None, torch.arange(200), labels=labels)
        >>> print(diagnose(trajectory).metric)
        accuracy
    """
    check_has_rows(trajectory)
    check_evaluated(trajectory)
    check_once(trajectory)
    check_int("samples", samples, remedy="Pass samples=500, say.")
    if not len(speedups):
        raise ArgumentError("speedups", expected="at least one number ≥ 1", got="none", remedy="Pass (1.5, 2.0), say.")
    speedups = speedups.tolist() if hasattr(speedups, "tolist") else list(speedups)
    for speedup in speedups:
        check_real("speedups", speedup, 1.0, remedy="Pass (1.5, 2.0), say.")
    values, metric_name = _values(trajectory, metric)
    rows, num_steps = values.shape
    grids = _policy_grids(trajectory, compare)
    exits = {name: grid.exit_steps(trajectory).cpu() for name, grid in grids.items()}
    policies: dict[str, ExitPolicy] = {}
    tried = {
        name: [
            (float(left.double().mean()), _score(values, left), _name(policy, policies))
            for policy, left in zip(grid.policies, exits[name], strict=True)
        ]
        for name, grid in grids.items()
    }
    scores = values.mean(0).tolist()
    frontiers = {name: frontier_of(points) for name, points in tried.items()}
    frontiers |= {"blind": blind_frontier(scores), "oracle": oracle_frontier(values)}
    if static:
        top = 1.0 if metric_name in _SHARES else math.inf
        cuts = _steps(static, num_steps, top)
        points = [(float(step), float(score), f"cut after step {step}") for step, score in cuts]
        frontiers["static"] = frontier_of(points)
    bootstrap = _Bootstrap(values, torch.cat(list(exits.values())), samples, seed)
    gains = tuple(_gain(speedup, scores, frontiers, list(grids), bootstrap) for speedup in speedups)
    middle = gains[len(gains) // 2]
    chosen = policies.get(middle.policy)
    return Diagnosis(
        verdict=_verdict(gains, _cheapest_step(values), metric_name, rows, _margin(scores, metric_name)),
        metric=metric_name,
        scores=tuple(scores),
        frontiers=frontiers,
        gains=gains,
        collapse=None if trajectory.hazard_logits is None else _collapse(trajectory),
        difficulty=() if chosen is None else _difficulty(trajectory, replay(trajectory, chosen).exit_step.cpu()),
        rows=rows,
    )


def _values(trajectory: Recording, metric: MetricLike | None) -> tuple[Tensor, str]:
    """What each row's answer at each step is worth, `(rows, steps)` float64, and the name of the score."""
    if len(trajectory) < 20 or trajectory.num_steps < 2:
        raise ArgumentError(
            "trajectory",
            expected="at least 20 rows and 2 steps",
            got=f"{len(trajectory)} rows and {trajectory.num_steps} steps",
            remedy="Record more of the data: there is nothing to compare.",
        )
    if trajectory.labels is None:
        raise ArgumentError(
            "trajectory",
            expected="labels, by which answers are judged",
            got="none",
            remedy="Record them: model.unroll(inputs, labels=labels).",
        )
    made: Metric | None = as_metric(metric, trajectory)
    if made is None or made.per_row is None:
        raise ArgumentError(
            "metric",
            expected="a score that is a mean over rows, such as 'accuracy' or 'negative_squared_error'",
            got=repr(metric) if made is None else made.name,
            remedy="Name one of them; a correlation cannot be compared row by row.",
        )
    if trajectory.hazard_logits is not None and bool(trajectory.hazard_logits.isnan().any()):
        raise ArgumentError(
            "trajectory",
            expected="hazards that are numbers",
            got=f"NaN in {int(trajectory.hazard_logits.isnan().any(1).sum())} of {len(trajectory)} rows",
            remedy="Look for NaN in the features of those rows.",
        )
    broken = ~made.per_row.isfinite().all(1)
    if bool(broken.any()):
        raise ArgumentError(
            "trajectory",
            expected=f"a {made.name.replace('_', ' ')} that is finite for every row and step",
            got=f"none for {int(broken.sum())} of {len(broken)} rows",
            remedy="Look for NaN in the outputs or labels of those rows; one of them makes every mean NaN.",
        )
    return made.per_row.cpu(), made.name


def _policy_grids(
    trajectory: Recording, compare: PolicyGridLike | Sequence[PolicyGridLike] | None
) -> dict[str, PolicyGrid]:
    """The policies to try, by name."""
    if compare is None:
        found = {}
        for kind in _TRIED:
            try:
                found[kind.__name__] = as_policy_grid(kind, None, trajectory, look=True)
            except ArgumentError:  # not for this task, or not without a Lambda head
                continue
        if trajectory.meaning.numbers:
            found["Patience"] = patience_on_numbers(trajectory)
        return found
    listed = list(compare) if isinstance(compare, Sequence) else [compare]
    if not listed:
        raise ArgumentError(
            "compare", expected="at least one family of policies", got="none", remedy="Pass policies.Confidence, say."
        )
    made: dict[str, PolicyGrid] = {}
    for each in listed:
        name = getattr(each, "__name__", type(each).__name__)
        name = name if name not in made else f"{name} ({len(made) + 1})"
        made[name] = as_policy_grid(each, None, trajectory, look=True)
        check_unfitted(trajectory, made[name].policies)
    return made


def _name(policy: ExitPolicy, named: dict[str, ExitPolicy]) -> str:
    """What a policy is called, with a number where another one, of other tables say, is called so; noted in `named`."""
    name, count = repr(policy), 1
    while named.setdefault(name, policy) != policy:
        count += 1
        name = f"{policy!r} ({count})"
    return name


def _cheapest_step(values: Tensor) -> int:
    """The first step that is not clearly worse than the best one: by less than 1.96 standard errors, row by row."""
    best = values.mean(0).argmax()
    worse = values[:, best].unsqueeze(1) - values
    bar = 1.96 * worse.std(0) / math.sqrt(len(values))
    return int((worse.mean(0) <= bar).long().argmax()) + 1


def _score(values: Tensor, exit_step: Tensor) -> float:
    return float(values.gather(1, (exit_step - 1).unsqueeze(1)).mean())


def _steps(static: Mapping[int, float], num_steps: int, top: float) -> list[tuple[int, float]]:
    for step in static:
        remedy = "Pass scores by step, {3: 0.85}, say, for the encoder cut after 3 steps."
        check_int("static", step, 1, num_steps, remedy=remedy)
        check_real(f"static[{step}]", static[step], -math.inf if top == math.inf else 0.0, top, remedy=remedy)
    return sorted(static.items())


class _Bootstrap:
    """Policy against blind on the rows that a sample left out, with all choices made on the sample.

    Args:
        values: What each row's answer is worth at each step, `(rows, steps)`.
        exits: Exit steps under every policy tried, `(policies, rows)`.
        samples: Number of bootstrap samples.
        seed: Seed by which the samples are drawn.
    """

    def __init__(self, values: Tensor, exits: Tensor, samples: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        columns = torch.cat([values.gather(1, (exits - 1).T), exits.T.double(), values], dim=1)
        inside, outside = [], []
        for start in range(0, samples, _AT_ONCE):
            counts = _draw(len(values), min(_AT_ONCE, samples - start), generator)
            left_out = (counts == 0).double()
            inside.append(counts @ columns / len(values))
            outside.append(left_out @ columns / left_out.sum(1, keepdim=True))
        sizes = [len(exits), len(exits), values.shape[1]]
        self._score, self._step, self._blind = torch.cat(inside).split(sizes, dim=1)
        self._score_outside, self._step_outside, self._blind_outside = torch.cat(outside).split(sizes, dim=1)

    def gains(self, mean_step: float) -> Tensor:
        """Policy minus the best blind choice that costs no more than the chosen policy does on the rows left out.

        Samples for which no policy is cheap enough are left out.
        """
        affordable = torch.where(self._step <= mean_step + 1e-9, self._score, -torch.inf)
        chosen = affordable.argmax(1, keepdim=True)
        at = self._step_outside.gather(1, chosen).squeeze(1)
        blind = blind_mix(self._blind, self._blind_outside, at)
        gains: Tensor = self._score_outside.gather(1, chosen).squeeze(1) - blind
        usable = affordable.gather(1, chosen).squeeze(1) > -torch.inf
        return gains[usable]


_AT_ONCE = 50  # samples whose counts are held at a time


def _draw(rows: int, samples: int, generator: torch.Generator) -> Tensor:
    """How often each row is in each sample, `(samples, rows)` float64."""
    drawn = torch.randint(rows, (samples, rows), generator=generator)
    return torch.zeros(samples, rows, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(1).double().expand_as(drawn)
    )


def _gain(
    speedup: float, scores: Sequence[float], frontiers: Mapping[str, Frontier], tried: list[str], bootstrap: _Bootstrap
) -> Gain:
    mean_step = max(len(scores) / speedup, 1.0)
    places = {name: frontiers[name].best_within(mean_step) for name in tried}
    found = {name: place for name, place in places.items() if place is not None}
    blind = frontiers["blind"]
    blind_step = max(range(1, int(mean_step + 1e-9) + 1), key=lambda step: scores[step - 1])
    static = frontiers.get("static")
    cut = None if static is None else static.best_within(mean_step)
    of_cut = math.nan if static is None or cut is None else static.scores[cut]
    if not found:
        nothing = (f"none within {mean_step:.2f} steps", math.nan, blind.mixed(mean_step), blind_step)
        return Gain(speedup, *nothing, frontiers["oracle"].mixed(mean_step), of_cut, math.nan, math.nan, math.nan)
    best = max(found, key=lambda name: frontiers[name].scores[found[name]])
    frontier, place = frontiers[best], found[best]
    step = frontier.steps[place]
    gains = bootstrap.gains(mean_step)
    quantiles = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(gains, quantiles).tolist() if len(gains) else (math.nan, math.nan)
    return Gain(
        speedup,
        frontier.names[place],
        frontier.scores[place],
        blind.mixed(step),
        blind_step,
        frontiers["oracle"].mixed(step),
        of_cut,
        float(gains.mean()) if len(gains) else math.nan,
        low,
        high,
    )


def _margin(scores: Sequence[float], metric: str) -> float:
    """What a gain has to be to matter: 0.03 of right answers, or a tenth of what the steps differ by."""
    return 0.03 if metric in _SHARES else 0.1 * (max(scores) - min(scores))


def _verdict(gains: Sequence[Gain], cheapest: int, metric: str, rows: int, margin: float) -> str:
    pays = [gain for gain in gains if gain.low > 0.0]
    told = [gain for gain in gains if not math.isnan(gain.gain)]
    if pays:
        best = max(pays, key=lambda gain: gain.gain)
        sentence = (
            f"Early exits pay on this model: at ×{best.speedup:g} {best.policy} scores {best.score:.4f} "
            f"({metric.replace('_', ' ')}) where the best blind choice that costs no more scores {best.blind:.4f} "
            f"(gain {best.gain:+.4f}, 95% interval {best.low:+.4f} to {best.high:+.4f})"
        )
        beaten = [gain for gain in pays if gain.static > gain.score]
        if beaten:
            cut = max(beaten, key=lambda gain: gain.static - gain.score)
            sentence += (
                f", but at ×{cut.speedup:g} the encoder cut and trained so scores {cut.static:.4f}: use that there"
            )
        return sentence + "."
    than, beaten = "", [gain for gain in gains if gain.static > gain.blind]
    if beaten:
        cut = max(beaten, key=lambda gain: gain.static - gain.blind)
        than = f"; at ×{cut.speedup:g} the encoder cut and trained so scores {cut.static:.4f}"
    if not told:
        return f"No policy that was tried is cheap enough for any of the speed-ups: use FixedStep({cheapest}){than}."
    best = max(told, key=lambda gain: gain.gain)
    if max(gain.high for gain in told) > max(margin, 1e-12):
        widest = max(told, key=lambda gain: gain.high)
        return (
            f"These {rows} rows cannot tell whether early exits pay on this model: the gain of a policy over blind at "
            f"×{widest.speedup:g} is {widest.gain:+.4f}, 95% interval {widest.low:+.4f} to {widest.high:+.4f}. Record "
            f"more rows{than}."
        )
    return (
        f"On this model one fixed step is as good as any policy tried: use FixedStep({cheapest}), the first step that "
        f"is not clearly worse than the best (the largest gain of a policy over blind is {best.gain:+.4f} at "
        f"×{best.speedup:g}, 95% interval {best.low:+.4f} to {best.high:+.4f}){than}."
    )


def _collapse(trajectory: Recording) -> Collapse:
    halting = trajectory.halting
    exit_step = replay(trajectory, Quantile(0.5)).exit_step
    counts = torch.bincount(exit_step, minlength=trajectory.num_steps + 1)
    p = halting.pmf.double()
    mean = p.mean(0)

    def entropy(q: Tensor) -> Tensor:
        return -torch.where(q > 0, q * q.clamp(min=1e-300).log(), 0.0).sum(-1)

    information = float(entropy(mean) - entropy(p).mean()) / math.log(trajectory.num_steps)
    return Collapse(int(counts.argmax()), float(counts.max()) / len(trajectory), max(information, 0.0))


def _difficulty(trajectory: Recording, exit_step: Tensor) -> tuple[Difficulty, ...]:
    """Rows by the step from which all answers are right."""
    if not trajectory.meaning.comparable:
        return ()
    right = trajectory.correct().cpu()
    stays = right.flip(1).long().cummin(1).values.sum(1)  # how many of the last answers are right
    groups = []
    for count in range(right.shape[1], -1, -1):
        members = stays == count
        if bool(members.any()):
            step = None if count == 0 else right.shape[1] - count + 1
            groups.append(Difficulty(step, float(members.double().mean()), float(exit_step[members].double().mean())))
    return tuple(groups)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
