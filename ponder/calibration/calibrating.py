"""Calibration: the threshold that meets a target on given data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ponder._utils.checks import check_real
from ponder._utils.rounding import rounded_down, rounded_up
from ponder.calibration.families import FamilyLike, family_of
from ponder.calibration.records import Record, check_record
from ponder.calibration.repeats import check_fresh
from ponder.calibration.sweeps import Costs, Curve, Point, Ruler
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, FixedStep, LastStep

__all__ = ["Calibration", "calibrate"]

_ROUNDING = 1e-9
"""The amount by which a mean may miss a target."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """A policy that was chosen to meet a target.

    Args:
        policy: The policy; `LastStep()` if no threshold meets the target.
        point: Its score and cost on the calibration data.
        curve: The points of all thresholds.
        met: Whether the target is met on the calibration data.
        statement: Target and outcome in words.

    Example:
        >>> found = ponder.calibrate(trajectory, policies.Confidence, at_least=0.99)
        >>> found.met, found.point.mean_exit_step, found.point.score
        (True, 2.0, 1.0)
    """

    policy: ExitPolicy
    point: Point
    curve: Curve = field(repr=False)
    met: bool
    statement: str
    _seen: Record = field(repr=False)
    _measured: dict[str, Any] = field(repr=False)

    def evaluate(self, test: Record) -> Point:
        """Measure the policy, as in the calibration, on a run of the same model over other rows."""
        check_fresh(test, self._seen)
        return Ruler(test, **self._measured).point(self.policy)


def calibrate(
    trajectory: Record,
    policies: FamilyLike | Sequence[FamilyLike],
    *,
    metric: Any = None,
    at_least: float | None = None,
    at_most_steps: float | None = None,
    grid: Iterable[float] | None = None,
    costs: Costs | None = None,
) -> Calibration:
    """Choose a policy's threshold on a record.

    The choice is the best on these data and carries no promise for others (see `control_risk` for
    one); judge it on data that it has not seen, with `Calibration.evaluate`.

    Args:
        trajectory: A full-depth run on calibration data, with labels.
        policies: A class of policies with a threshold, a policy whose threshold is moved, or a
            callable value → policy. Of several in a list, and `FixedStep`, the best is taken: it is
            never worse, on these data, than any single step that meets the target. A coin between
            two steps can be better (`diagnose` compares with it).
        metric: A score, as for `sweep`.
        at_least: Take the cheapest threshold whose score is at least this share of the score at
            full depth.
        at_most_steps: Take the best score at a mean exit step of at most this.
        grid: Values of the threshold; those that the policy declares, and some between the rows'
            scores, where None.
        costs: Cost of exiting after each step, as for `sweep`.

    Example:
        >>> result = calibrate(trajectory, policies.Confidence, at_most_steps=2.5)
        >>> result.point.mean_exit_step <= 2.5
        True
    """
    check_record(trajectory)
    target = _target(at_least, at_most_steps)
    measured = {"metric": metric, "costs": costs}
    ruler = Ruler(trajectory, **measured)

    def calibrated(like: FamilyLike) -> Calibration:
        family = family_of(like, grid, trajectory, look=True)
        curve = ruler.curve(family)
        chosen, asked = _choose(curve, *target)
        policy = LastStep() if chosen is None else curve.policy(chosen)
        point = curve.full_depth if chosen is None else curve.points[chosen]
        if chosen is None:
            outcome = f"none of {len(curve)} thresholds qualify, so every row runs to the last step"
        else:
            outcome = f"{curve.threshold} = {point.threshold!r}"
        statement = (
            f"{asked}: {outcome} ({curve.metric} {point.score:.4f} against "
            f"{curve.full_depth.score:.4f} at full depth, mean exit step "
            f"{point.mean_exit_step:.2f}, cost {point.cost:.3f}, on {len(trajectory)} rows)"
        )
        return Calibration(
            policy, point, curve, chosen is not None, statement, trajectory, measured
        )

    if not isinstance(policies, Sequence):
        return calibrated(policies)
    tried = list(
        map(calibrated, [FixedStep, *(like for like in policies if like is not FixedStep)])
    )

    def rank(one: Calibration) -> tuple[float, float]:
        cost = one.point.cost
        loss = -one.point.score
        return (loss, cost) if at_least is None else (cost, loss)

    best = min(
        (one for one in tried if one.met), key=rank, default=tried[0]
    )  # of equal ones the first looks at nothing
    name = type(best.policy).__name__
    return replace(best, statement=f"{name}, the best of {len(tried)} families, {best.statement}")


def _target(at_least: float | None, at_most_steps: float | None) -> tuple[str, float]:
    given = {"at_least": at_least, "at_most_steps": at_most_steps}
    asked = [(name, value) for name, value in given.items() if value is not None]
    if len(asked) != 1:
        raise ArgumentError(
            ", ".join(given),
            expected="exactly one of them",
            got=dict(asked),
            remedy="Pass at_least=0.99, say.",
        )
    ((name, value),) = asked
    if name == "at_least":
        check_real(name, value, 0.0, 10.0, open_low=True)
    else:
        check_real(name, value, 1.0)
    return name, value


def _choose(curve: Curve, name: str, value: float) -> tuple[int | None, str]:
    """Return the place of the point that meets the target best, if any, and the target in words."""
    points = curve.points
    full = curve.full_depth.score
    places = [place for place, point in enumerate(points) if not math.isnan(point.score)]
    if not places or (name == "at_least" and not full > 0.0):
        expected = "labels and a numeric score, above 0 at full depth for a share of it"
        got = f"{curve.metric}: {full} at full depth, numbers at {len(places)} of {len(points)}"
        remedy = "Record labels: model.record(dataset) with labels; or pass a metric (outputs, "
        remedy += "labels) -> number."
        raise ArgumentError("metric", expected=expected, got=got, remedy=remedy)
    if name == "at_least":
        fit = [i for i in places if points[i].score >= value * full - _ROUNDING]
        best = min(fit, key=lambda i: (points[i].cost, -points[i].score), default=None)
        return best, f"cheapest with at least {rounded_down(value)} of the score at full depth"
    fit = [i for i in places if points[i].mean_exit_step <= value + _ROUNDING]
    best = max(fit, key=lambda i: (points[i].score, -points[i].cost), default=None)
    return best, f"best with a mean exit step of at most {rounded_up(value)}"
