"""Calibration: the threshold that meets a target on given data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ponder._utils.rounding import rounded_down, rounded_up
from ponder._utils.validation import check_real
from ponder.analysis.metrics import MetricLike, as_metric
from ponder.analysis.policy_grid import PolicyGrid, PolicyGridLike, as_policy_grid
from ponder.analysis.sweeps import Costs, Curve, Point, curve_of, measure
from ponder.calibration.fresh import check_fresh, check_same_weights
from ponder.errors import ArgumentError
from ponder.parts.recording import check_evaluated, check_has_rows, check_sample
from ponder.policies import ExitPolicy, FixedStep, LastStep
from ponder.policies.fitted import check_unfitted
from ponder.trajectory import Trajectory

__all__ = ["Calibration", "calibrate"]

_TARGETS = {
    "at_least": "It is a share of the score at full depth: pass 0.99, say.",
    "at_most_steps": "Every row runs one step at least: pass 2.5, say.",
    "at_most_cost": "It is a share of the cost of full depth: pass 0.5, say.",
}
_ROUNDING = 1e-9  # by which a mean may miss a target that it meets


@dataclass(frozen=True, eq=False)
class Calibration:
    """A policy that was chosen to meet a target.

    Args:
        policy: The policy; `LastStep()` where no threshold meets the target.
        point: What it gives on the calibration data.
        curve: What every threshold gives.
        met: Whether the target is met on the calibration data.
        statement: What was asked and what came out, in words.

    Example:
        >>> found = ponder.calibrate(trajectory, policies.Confidence, at_least=0.99)
        >>> found.met, found.point.mean_exit_step, found.point.score
        (True, 2.0, 1.0)
    """

    policy: ExitPolicy
    point: Point
    curve: Curve
    met: bool
    statement: str
    _seen: Trajectory
    _metric: MetricLike | None
    _costs: Costs | None
    _full_cost: float | None = None

    def __repr__(self) -> str:
        return f"Calibration({self.policy!r}, met={self.met}: {self.statement})"

    def evaluate(self, test: Trajectory) -> Point:
        """Measure the policy on fresh data, as the calibration measured it.

        Raises:
            ArgumentError: Rows of `test` were used to calibrate, or to fit the policy; they have no labels; or it is a
                run of another model.
        """
        check_has_rows(test, "test")
        check_evaluated(test, "test")
        _check_labels(test, "test", self._metric)
        check_same_weights(test, self._seen)
        check_fresh(test, self._seen)
        check_unfitted(test, [self.policy], "test")
        return measure(test, self.policy, metric=self._metric, costs=self._costs, full_cost=self._full_cost)


def calibrate(
    trajectory: Trajectory,
    policies: PolicyGridLike | Sequence[PolicyGridLike],
    *,
    metric: MetricLike | None = None,
    at_least: float | None = None,
    at_most_steps: float | None = None,
    at_most_cost: float | None = None,
    grid: Iterable[float] | None = None,
    costs: Costs | None = None,
    full_cost: float | None = None,
) -> Calibration:
    """Choose a policy's threshold on a trajectory.

    The choice is the best on these data and carries no promise for others (see `control_risk` for one); judge it on
    data that it has not seen, with `Calibration.evaluate`.

    Args:
        trajectory: A full-depth run on calibration data, with labels.
        policies: A class of policies with a threshold, a policy whose threshold is moved, or a callable value → policy.
            Several of the first two in a list are tried one by one, `FixedStep` among them, and the best is taken. On
            these data it is never worse than any single step that meets the target; a coin between two steps is not
            tried, and can be better (`diagnose` tells). Of numbers, the class `Patience` is tried as `Patience(1)` with
            tolerances between the changes of the rows.
        metric: ``"accuracy"``, ``"exact_match"`` where a row has several answers, ``"negative_squared_error"``, a
            callable (outputs, labels) → number, the higher the better, or None for the task's own. A callable is given
            the rows that have a label, or, with an answer a token, the tokens that do, as that of `ponder.fit` is.
        at_least: Take the cheapest threshold whose score is at least this share of the score at full depth.
        at_most_steps: Take the best score at a mean exit step of at most this.
        at_most_cost: Take the best score at a mean cost of at most this, relative to `full_cost`.
        grid: Values of the threshold to try, strictly rising or falling; those that the policy declares, and some
            between the statistics of the rows, where None.
        costs: Cost of leaving after each step, `(steps,)`, or a callable that gives it for what a policy reads, such as
            `ponder.cost.Cost.cumulative`; n where None. Numbers are those of all families, whatever each reads.
        full_cost: The cost of the plain model, as for `sweep`: 1.0 beside `Cost.cumulative`. Where None, costs are
            relative to going all the way with the policy, what it reads included.

    Raises:
        ArgumentError: Not exactly one target, no labels, rows on which a policy was fitted, a run of training mode,
            several families whose costs are asked for without a `full_cost`, or whatever `sweep` refuses.

    Example:
        >>> trajectory = Trajectory(
        ...     torch.randn(64, 4, 3), torch.randn(64, 4), torch.arange(64), labels=torch.randint(3, (64,))
        ... )
        >>> calibrate(trajectory, policies.Quantile, at_most_steps=2.5).point.mean_exit_step <= 2.5
        True
    """
    check_sample(trajectory)
    target = _target(at_least, at_most_steps, at_most_cost)
    _check_labels(trajectory, "trajectory", metric)
    if metric is None and trajectory.meaning.metric is None:
        raise ArgumentError(
            "metric",
            expected="a callable (outputs, labels) -> number: the task has no score of its own",
            got="None",
            remedy="Pass metric=lambda outputs, labels: -float(loss(outputs, labels).mean()), say.",
        )
    if isinstance(policies, str) or not isinstance(policies, Sequence):
        tried = as_policy_grid(policies, grid, trajectory, look=True)
        return _calibrated(trajectory, tried, target, metric, costs, full_cost)
    if grid is not None:
        raise ArgumentError(
            "grid",
            expected="None where several families are tried, each on its own values",
            got="values",
            remedy="Leave it out, or calibrate one family.",
        )
    if callable(costs) and full_cost is None:
        raise ArgumentError(
            "full_cost",
            expected="a number, to which the costs of all families are relative",
            got="None",
            remedy="Pass full_cost=1.0 beside costs=cost.cumulative, which are relative to the plain model.",
        )

    def calibrated(like: PolicyGridLike) -> Calibration:
        tried = as_policy_grid(like, None, trajectory, look=True, takes_grid=False)
        return _calibrated(trajectory, tried, target, metric, costs, full_cost)

    return _best_among(policies, calibrated, cheapest=at_least is not None)


def _check_labels(trajectory: Trajectory, argument: str, metric: MetricLike | None) -> None:
    if metric is None and trajectory.labels is None:
        raise ArgumentError(
            argument,
            expected="labels, by which thresholds are judged",
            got="none",
            remedy="Record them: model.unroll(inputs, labels=labels).",
        )


def _calibrated(
    trajectory: Trajectory,
    tried: PolicyGrid,
    target: tuple[str, float],
    metric: MetricLike | None,
    costs: Costs | None,
    full_cost: float | None,
) -> Calibration:
    """One family, calibrated to the target."""
    curve = curve_of(trajectory, tried, as_metric(metric, trajectory), costs, full_cost)
    check_unfitted(trajectory, curve.policies)
    chosen, asked = _choose(curve, *target)
    policy = LastStep() if chosen is None else curve.policies[chosen]
    point = curve.full_depth if chosen is None else curve.points[chosen]
    outcome = (
        f"none of {len(curve)} thresholds qualify, so every row runs to the last step"
        if chosen is None
        else f"{curve.threshold} = {point.threshold!r}"
    )
    statement = (
        f"{asked}: {outcome} ({curve.metric} {point.score:.4f} against {curve.full_depth.score:.4f} at full depth, "
        f"mean exit step {point.mean_exit_step:.2f}, cost {point.cost:.3f}, on {len(trajectory)} rows)"
    )
    return Calibration(policy, point, curve, chosen is not None, statement, trajectory, metric, costs, full_cost)


def _best_among(
    policy_grids: Sequence[PolicyGridLike], calibrated: Callable[[PolicyGridLike], Calibration], *, cheapest: bool
) -> Calibration:
    """The family whose calibration is best, `FixedStep` before all others: a tie goes to what looks at nothing.

    So what comes out is never worse, on the data that it saw, than any single step for all rows that meets the target.
    A coin between two such steps is no policy: it can be better than all that are tried.

    Args:
        policy_grids: Families of policies, at least one.
        calibrated: Calibrates one of them to the target.
        cheapest: Whether the target asks for the least cost, or else for the best score.

    Raises:
        ArgumentError: There are none, or whatever the calibration of one refuses.
    """
    if not policy_grids:
        raise ArgumentError(
            "policies", expected="at least one family", got="none", remedy="Pass policies.Confidence, say."
        )
    if FixedStep not in policy_grids:
        policy_grids = [FixedStep, *policy_grids]
    tried = [calibrated(each) for each in sorted(policy_grids, key=lambda each: each is not FixedStep)]
    met = [each for each in tried if each.met] or tried[:1]
    best = met[0]
    for each in met[1:]:
        better = each.point.cost < best.point.cost if cheapest else each.point.score > best.point.score
        same = each.point.cost == best.point.cost if cheapest else each.point.score == best.point.score
        further = each.point.score > best.point.score if cheapest else each.point.cost < best.point.cost
        if better or (same and further):
            best = each
    chosen = type(best.policy).__name__
    return replace(best, statement=f"{chosen}, the best of {len(policy_grids)} families, {best.statement}")


def _target(at_least: float | None, at_most_steps: float | None, at_most_cost: float | None) -> tuple[str, float]:
    given = {"at_least": at_least, "at_most_steps": at_most_steps, "at_most_cost": at_most_cost}
    asked = {name: value for name, value in given.items() if value is not None}
    if len(asked) != 1:
        raise ArgumentError(
            "at_least, at_most_steps, at_most_cost",
            expected="exactly one of them",
            got=", ".join(f"{name}={value}" for name, value in asked.items()) or "none",
            remedy="Say what is to be met: at_least=0.99, say.",
        )
    name, value = asked.popitem()
    low, high = (1.0, math.inf) if name == "at_most_steps" else (0.0, 10.0 if name == "at_least" else math.inf)
    check_real(name, value, low, high, open_low=name != "at_most_steps", remedy=_TARGETS[name])
    return name, value


def _choose(curve: Curve, name: str, value: float) -> tuple[int | None, str]:
    """Place of the point that meets the target best, or None; and what was asked, in words."""
    places = [place for place, point in enumerate(curve.points) if not math.isnan(point.score)]
    if not places:
        raise ArgumentError(
            "metric",
            expected="a score that is a number at some threshold",
            got=f"{curve.metric} NaN at all {len(curve)}",
            remedy="Look for NaN in labels and outputs, and for what the metric divides by.",
        )
    if name == "at_least":
        full = curve.full_depth.score
        if not full > 0.0:
            raise ArgumentError(
                "metric",
                expected="a score above 0 at full depth, of which at_least is a share",
                got=full,
                remedy="Pass a metric that grows from 0, for example a correlation, or set at_most_steps.",
            )
        fit = [i for i in places if curve.points[i].score >= value * full - _ROUNDING]
        best = min(fit, key=lambda i: (curve.points[i].cost, -curve.points[i].score), default=None)
        return best, f"cheapest with at least {rounded_down(value)} of the score at full depth"
    field = "mean_exit_step" if name == "at_most_steps" else "cost"
    fit = [i for i in places if getattr(curve.points[i], field) <= value + _ROUNDING]
    best = max(fit, key=lambda i: (curve.points[i].score, -curve.points[i].cost), default=None)
    return best, f"best with a {'mean exit step' if name == 'at_most_steps' else 'cost'} of at most {rounded_up(value)}"
