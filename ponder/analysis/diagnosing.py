"""`ponder.diagnose`: do early exits pay on this model? Policies against blind choices, on rows that chose neither."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ponder._utils.validation import check_int, check_real
from ponder.analysis.diagnosis import Collapse, Diagnosis, Difficulty
from ponder.analysis.fixed_step import margin_of, step_for_all
from ponder.analysis.frontiers import (
    Frontier,
    best_and_latest,
    blind_frontier,
    blind_mix,
    frontier_of,
    oracle_frontier,
)
from ponder.analysis.gain import Gain
from ponder.analysis.metrics import Metric, MetricLike, as_metric
from ponder.analysis.policy_grid import PolicyGrid, PolicyGridLike, as_policy_grid
from ponder.engine.replay import replay
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.recording import Recording, check_sample
from ponder.policies import Confidence, Entropy, Margin, Patience, Quantile
from ponder.policies.base import ExitPolicy
from ponder.policies.fitted import check_unfitted

__all__ = ["diagnose"]

_TRIED: tuple[type[ExitPolicy], ...] = (Confidence, Margin, Entropy, Patience, Quantile)
_SHARES = ("accuracy", "exact_match")
_AT_ONCE = 50  # samples whose counts are held at a time
_Z = 1.96  # of a 95% interval
_SPREAD = math.sqrt(math.e - 1.0)  # of means of n/e of n rows, beside that of means of n: √(e/n − 1/n) and √(1/n)


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
    """Say whether early exits pay on a model: whether any policy is better than leaving blindly at the same speed-up.

    Blind is the baseline that matters: one step for all rows, or a coin between two steps, looks at nothing. Only what
    lies above it is the work of a policy; and only what lies above an encoder that was cut and trained so (`static`)
    pays over training a smaller one.

    Args:
        trajectory: A full-depth run, with labels, on rows that chose nothing.
        compare: Classes of policies with a threshold, or policies whose threshold is moved; those that the trajectory
            can be replayed with, of the ones that the papers use, where None. Of numbers, the class `Patience` is tried
            as `Patience(1)` with tolerances between the changes of the rows.
        static: Scores of the encoder cut after a step and trained so, by step.
        metric: A mean over rows: ``"accuracy"``, ``"exact_match"`` where a row has several answers,
            ``"negative_squared_error"``, or the task's own where None.
        speedups: N / mean exit step at which policy and blind are compared. Those above N, the number of steps, are
            left out: no exit is so early.
        samples: Bootstrap samples, at least 40.
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
    check_sample(trajectory)
    check_int("samples", samples, 40, remedy="Pass samples=500, say: fewer than 40 have no 2.5% at either end.")
    if not hasattr(speedups, "__len__"):
        raise ArgumentTypeError(
            "speedups", expected="several numbers", got=type(speedups).__name__, remedy="Pass (1.5, 2.0), say."
        )
    if not len(speedups):
        raise ArgumentError("speedups", expected="at least one number ≥ 1", got="none", remedy="Pass (1.5, 2.0), say.")
    speedups = speedups.tolist() if hasattr(speedups, "tolist") else list(speedups)
    for speedup in speedups:
        check_real("speedups", speedup, 1.0, remedy="Pass (1.5, 2.0), say.")
    values, metric_name = _values(trajectory, metric)
    rows, num_steps = values.shape
    if min(speedups) > num_steps:
        raise ArgumentError(
            "speedups",
            expected=f"some of at most {num_steps}, the number of steps: all rows leave after the first there",
            got=speedups,
            remedy=f"Pass ({num_steps / 2:g}, {num_steps}), say.",
        )
    speedups = [speedup for speedup in speedups if speedup <= num_steps]
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
        cuts = _steps(static, num_steps, metric_name)
        points = [(float(step), float(score), f"cut after step {step}") for step, score in cuts]
        frontiers["static"] = frontier_of(points)
    bootstrap = _Bootstrap(values, torch.cat(list(exits.values())), samples, seed)
    gains = tuple(_gain(speedup, scores, frontiers, list(grids), bootstrap) for speedup in speedups)
    from_middle = sorted(enumerate(gains), key=lambda placed: abs(placed[0] - len(gains) // 2))
    judged = next((gain for _, gain in from_middle if gain.policy in policies), None)
    shares = metric_name in _SHARES
    return Diagnosis(
        metric=metric_name,
        scores=tuple(scores),
        frontiers=frontiers,
        gains=gains,
        step_for_all=step_for_all(values, margin_of(scores, shares=shares), shares=shares),
        collapse=None if trajectory.hazard_logits is None else _collapse(trajectory),
        difficulty=() if judged is None else _difficulty(trajectory, policies[judged.policy], judged.speedup),
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
        return found
    listed = [compare] if isinstance(compare, str) or not isinstance(compare, Sequence) else list(compare)
    if not listed:
        raise ArgumentError(
            "compare", expected="at least one family of policies", got="none", remedy="Pass policies.Confidence, say."
        )
    made: dict[str, PolicyGrid] = {}
    for each in listed:
        name, count = (family := getattr(each, "__name__", type(each).__name__)), 1
        while name in made:
            count += 1
            name = f"{family} ({count})"
        made[name] = as_policy_grid(each, None, trajectory, look=True, argument="compare", takes_grid=False)
        check_unfitted(trajectory, made[name].policies)
    return made


def _name(policy: ExitPolicy, named: dict[str, ExitPolicy]) -> str:
    """What a policy is called, with a number where another one, of other tables say, is called so; noted in `named`."""
    name, count = repr(policy), 1
    while named.setdefault(name, policy) != policy:
        count += 1
        name = f"{policy!r} ({count})"
    return name


def _score(values: Tensor, exit_step: Tensor) -> float:
    return float(values.gather(1, (exit_step - 1).unsqueeze(1)).mean())


def _steps(static: Mapping[int, float], num_steps: int, metric_name: str) -> list[tuple[int, float]]:
    low, high = (0.0, 1.0) if metric_name in _SHARES else (-math.inf, math.inf)
    remedy = "Pass scores by step, {3: 0.85}, say, for the encoder cut after 3 steps."
    if metric_name == "negative_squared_error":
        high, remedy = 0.0, "Pass minus the mean squared error by step, {3: -0.2}, say: more is better in every score."
    for step in static:
        check_int("static", step, 1, num_steps, remedy=remedy)
        check_real(f"static[{step}]", static[step], low, high, remedy=remedy)
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
        self._inside, self._outside = (torch.cat(of).split(sizes, dim=1) for of in (inside, outside))
        self._all = columns.mean(0).expand(samples, -1).split(sizes, dim=1)
        self._unseen = _Z**2 * float((values.amax(1) - values.amin(1)).amax()) / (len(values) + _Z**2)

    def widened(self, interval: Tensor) -> Tensor:
        """An interval with the spread of z²/2 rows more of the greatest gain, and as many of the greatest loss.

        The samples know the rows that are there alone: where a few decide, and these agree, they tell of no others.
        """
        low, high = interval.tolist()
        middle, apart = (low + high) / 2, math.hypot((high - low) / 2, self._unseen)
        return torch.tensor([middle - apart, middle + apart], dtype=interval.dtype)

    def gains(self, mean_step: float) -> tuple[Tensor, Tensor]:
        """Policy minus the best blind choice at what both may cost, each chosen on the sample.

        A policy that costs more than that on the rows where it is judged is compared with blind at what it costs there.
        Samples for which no policy is cheap enough are left out.

        Args:
            mean_step: What they may cost.

        Returns:
            The gain on the rows that each sample left out, and the gain of the same choice on all rows.
        """
        score, step, blind = self._inside
        affordable = torch.where(step <= mean_step + 1e-9, score, -torch.inf)
        chosen = best_and_latest(affordable, step)
        possible = affordable.amax(1) > -torch.inf

        def gain(scores: Tensor, steps: Tensor, blind_scores: Tensor) -> Tensor:
            at = steps.gather(1, chosen).squeeze(1).clamp(min=mean_step)
            made: Tensor = scores.gather(1, chosen).squeeze(1) - blind_mix(blind, blind_scores, at)
            return made[possible]

        return gain(*self._outside), gain(*self._all)


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
    left_out, of_all = bootstrap.gains(mean_step)
    quantiles = torch.tensor([0.025, 0.975], dtype=torch.float64)
    spread = of_all + (left_out - of_all) / _SPREAD
    low, high = bootstrap.widened(torch.quantile(spread, quantiles)).tolist() if len(spread) else (math.nan, math.nan)
    return Gain(
        speedup,
        frontier.names[place],
        frontier.scores[place],
        blind.mixed(mean_step),
        blind_step,
        frontiers["oracle"].mixed(mean_step),
        of_cut,
        float(left_out.mean()) if len(left_out) else math.nan,
        low,
        high,
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


def _difficulty(trajectory: Recording, policy: ExitPolicy, speedup: float) -> tuple[Difficulty, ...]:
    """Rows by the step from which all answers are right, and where the policy lets them go."""
    if not trajectory.meaning.comparable:
        return ()
    exit_step = replay(trajectory, policy).exit_step.cpu()
    right = trajectory.correct().cpu()
    stays = right.flip(1).long().cummin(1).values.sum(1)  # how many of the last answers are right
    groups = []
    for count in range(right.shape[1], -1, -1):
        members = stays == count
        if bool(members.any()):
            step = None if count == 0 else right.shape[1] - count + 1
            groups.append(
                Difficulty(step, float(members.double().mean()), float(exit_step[members].double().mean()), speedup)
            )
    return tuple(groups)
