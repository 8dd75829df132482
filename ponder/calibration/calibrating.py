"""Calibration: choose the threshold that meets a target on a record.

`calibrate` measures every threshold of a family (`Ruler.curve`), takes the best point that meets
the target (`_Target.best`), and, of several families, the best of these.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ponder._utils.checks import check_real
from ponder._utils.rounding import rounded_down, rounded_up
from ponder.calibration.families import FamilyLike, family_of
from ponder.calibration.records import Record, check_fresh, check_record
from ponder.calibration.sweeps import Costs, Curve, Point, Ruler
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, FixedStep, LastStep

__all__ = ["Calibration", "calibrate"]

_ROUNDING = 1e-9  # by which a mean may miss a target and still meet it


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
        """Measure the policy on fresh data: a run of the same model over other rows."""
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
    one). Judge it on other data, with `Calibration.evaluate`.

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
        grid: Values of the threshold. By default those that the policy declares, and some between
            the scores of the rows.
        costs: Cost of exiting after each step, as for `sweep`.

    Raises:
        ArgumentError: None of the two targets, or both, or a record without a score.

    Example:
        >>> found = calibrate(trajectory, policies.Confidence, at_most_steps=2.5)
        >>> found.point.mean_exit_step <= 2.5
        True
    """
    check_record(trajectory)
    target = _target(at_least, at_most_steps)
    measured = {"metric": metric, "costs": costs}
    ruler = Ruler(trajectory, **measured)

    def calibrated(like: FamilyLike) -> Calibration:
        curve = ruler.curve(family_of(like, grid, trajectory, look=True))
        place = target.best(curve)
        policy: ExitPolicy = LastStep()
        point = curve.full_depth
        if place is not None:
            policy = curve.policy(place)
            point = curve.points[place]
        return Calibration(
            policy=policy,
            point=point,
            curve=curve,
            met=place is not None,
            statement=_statement(target, curve, place, len(trajectory)),
            _seen=trajectory,
            _measured=measured,
        )

    if not isinstance(policies, Sequence):
        return calibrated(policies)
    # A fixed step comes first, since of equally good families the simplest is to be taken.
    others = [like for like in policies if like is not FixedStep]
    tried = [calibrated(like) for like in (FixedStep, *others)]
    met = [one for one in tried if one.met]
    best = min(met, key=lambda one: target.rank(one.point), default=tried[0])
    name = type(best.policy).__name__
    return replace(best, statement=f"{name}, the best of {len(tried)} families, {best.statement}")


def _statement(target: _Target, curve: Curve, place: int | None, rows: int) -> str:
    """Return the target and the outcome in words; `place` is that of the chosen point."""
    if place is None:
        point = curve.full_depth
        outcome = f"none of {len(curve)} thresholds qualify, so every row runs to the last step"
    else:
        point = curve.points[place]
        outcome = f"{curve.threshold} = {point.threshold!r}"
    scores = f"{curve.metric} {point.score:.4f} against {curve.full_depth.score:.4f} at full depth"
    return (
        f"{target}: {outcome} ({scores}, mean exit step {point.mean_exit_step:.2f}, "
        f"cost {point.cost:.3f}, on {rows} rows)"
    )


class _Target(ABC):
    """A target of a calibration: which points of a curve meet it, and which of them is the best."""

    @abstractmethod
    def meets(self, point: Point, full_depth: Point) -> bool:
        """Return whether a point meets the target."""

    @abstractmethod
    def rank(self, point: Point) -> tuple[float, float]:
        """Return the key by which the best point is the first."""

    def check(self, full_depth: Point) -> bool:
        """Return whether the target has a meaning, given the score at full depth."""
        return True

    def best(self, curve: Curve) -> int | None:
        """Return the place of the best point that meets the target; None if no point does."""
        scored = [i for i, point in enumerate(curve.points) if not math.isnan(point.score)]
        if not scored or not self.check(curve.full_depth):
            full = curve.full_depth.score
            many = f"{len(scored)} of {len(curve)} thresholds"
            raise ArgumentError(
                "metric",
                expected="labels and a score that is a number, and above 0 at full depth "
                "if a share of it is the target",
                got=f"{curve.metric}: {full} at full depth, numbers at {many}",
                remedy="Record labels: model.record(dataset) with labels; "
                "or pass a metric (outputs, labels) -> number.",
            )
        meeting = [i for i in scored if self.meets(curve.points[i], curve.full_depth)]
        return min(meeting, key=lambda i: self.rank(curve.points[i]), default=None)


@dataclass(frozen=True)
class _AtLeast(_Target):
    """The lowest cost with at least a share of the score at full depth."""

    share: float

    def meets(self, point: Point, full_depth: Point) -> bool:
        return point.score >= self.share * full_depth.score - _ROUNDING

    def rank(self, point: Point) -> tuple[float, float]:
        return point.cost, -point.score

    def check(self, full_depth: Point) -> bool:
        return full_depth.score > 0.0

    def __str__(self) -> str:
        return f"cheapest with at least {rounded_down(self.share)} of the score at full depth"


@dataclass(frozen=True)
class _AtMostSteps(_Target):
    """The best score with a mean exit step of at most a number."""

    steps: float

    def meets(self, point: Point, full_depth: Point) -> bool:
        return point.mean_exit_step <= self.steps + _ROUNDING

    def rank(self, point: Point) -> tuple[float, float]:
        return -point.score, point.cost

    def __str__(self) -> str:
        return f"best with a mean exit step of at most {rounded_up(self.steps)}"


def _target(at_least: float | None, at_most_steps: float | None) -> _Target:
    """Return the target that was passed; refuse both, or neither."""
    if at_least is not None and at_most_steps is None:
        check_real("at_least", at_least, 0.0, 10.0, open_low=True)
        return _AtLeast(at_least)
    if at_most_steps is not None and at_least is None:
        check_real("at_most_steps", at_most_steps, 1.0)
        return _AtMostSteps(at_most_steps)
    targets = {"at_least": at_least, "at_most_steps": at_most_steps}
    raise ArgumentError(
        ", ".join(targets),
        expected="exactly one of them",
        got={name: value for name, value in targets.items() if value is not None},
        remedy="Pass at_least=0.99, say.",
    )
