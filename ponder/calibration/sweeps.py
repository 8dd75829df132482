"""Sweeps: the score, cost and agreement under every value of a threshold, from one record.

`sweep` builds the family of policies that differ in the threshold (`ponder.calibration.families`),
whose exits come from one pass over the record, and a `Ruler` measures these exits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import numpy as np

from ponder.calibration.families import Family, FamilyLike, family_of
from ponder.calibration.records import Floats, Ints, Metric, Record, at_exits, check_record
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy

__all__ = ["Costs", "Curve", "Point", "Ruler", "as_costs", "sweep"]

Costs: TypeAlias = Sequence[float] | Callable[[frozenset[str]], Any]
"""Costs of exiting after each step, `(steps,)`, or a function from `policy.needs` to these."""


@dataclass(frozen=True)
class Point:
    """The score, the mean exit step and the cost of one policy on a record.

    Args:
        threshold: Its value; NaN if the policy has none.
        score: Score of the answers at the exits, the higher the better; NaN without labels.
        mean_exit_step: Mean of the rows' exit steps, from 1 to N.
        cost: Mean cost relative to full depth.
        agreement: Share of the rows whose answer is that of full depth; NaN in regression.

    Example:
        >>> curve = trajectory.sweep(policies.Confidence, [0.3, 0.9])
        >>> [(point.threshold, point.mean_exit_step) for point in curve.points]
        [(0.3, 1.0), (0.9, 2.0)]
        >>> [round(point.score, 2) for point in curve.points]
        [0.33, 1.0]
    """

    threshold: float
    score: float
    mean_exit_step: float
    cost: float
    agreement: float


@dataclass(frozen=True, eq=False)
class Curve:
    """A table with a row for every value of the threshold, in the order of the grid.

    Args:
        threshold: Name of the threshold.
        metric: Name of the score.
        points: The scores and costs under each value.
        full_depth: Those without any early exit.
        family: The policies.

    Example:
        >>> curve = trajectory.sweep(policies.Confidence, [0.7, 0.9])
        >>> curve.to_dict()["mean_exit_step"], curve.policy(1)
        ([2.0, 2.0], Confidence(threshold=0.9))
    """

    threshold: str
    metric: str
    points: tuple[Point, ...]
    full_depth: Point
    family: Family = field(repr=False)

    def __len__(self) -> int:
        return len(self.points)

    def policy(self, place: int) -> ExitPolicy:
        """Return the policy of a point."""
        return self.family.build(self.points[place].threshold)

    def to_dict(self) -> dict[str, list[float]]:
        """Return one list a column: threshold, score, mean_exit_step, cost, agreement."""
        names = [each.name for each in fields(Point)]
        return {name: [getattr(point, name) for point in self.points] for name in names}


def sweep(
    trajectory: Record,
    policies: FamilyLike,
    grid: Iterable[float] | None = None,
    *,
    metric: Metric | None = None,
    costs: Costs | None = None,
    full_cost: float | None = None,
) -> Curve:
    """Try every value of a threshold on a record.

    Args:
        trajectory: A full-depth run.
        policies: A class of policies with a threshold, a policy whose threshold is moved, or a
            callable value → policy.
        grid: Values of the threshold, strictly rising or falling. By default those that the policy
            declares.
        metric: Name of a score, or a callable (outputs, labels) → number of which higher is better.
            By default the task's own.
        costs: Cost of exiting after each step, `(steps,)`, in any unit, or a function that gives it
            for what the policies read, such as `cost.Breakdown.cumulative`. By default step n costs
            n.
        full_cost: The cost by which all are divided; pass 1.0 with `Breakdown.cumulative`. By
            default the cost of the last step.

    Example:
        >>> len(sweep(trajectory, policies.Confidence, [0.25, 0.5, 0.75]))
        3
    """
    check_record(trajectory)
    family = family_of(policies, grid, trajectory)
    return Ruler(trajectory, metric, costs, full_cost).curve(family)


def as_costs(costs: Costs | None, num_steps: int, needs: frozenset[str] = frozenset()) -> Floats:
    """Return the cost of exiting at each step, `(steps,)`; 1..N if None."""
    if costs is None:
        return np.arange(1.0, num_steps + 1)
    if callable(costs):
        costs = costs(needs)
    values = np.asarray(costs, dtype=np.float64)
    if values.shape != (num_steps,) or not _are_cumulative(values):
        numbers = f"{num_steps} numbers of 0 or more that do not fall, the last above 0"
        expected = f"{numbers}: the cost of exiting after each step"
        remedy = (
            "Sum the costs of a cascade's stages: np.cumsum(costs). "
            "For a Breakdown, pass costs=cost.cumulative."
        )
        raise ArgumentError("costs", expected=expected, got=values.tolist(), remedy=remedy)
    return values


def _are_cumulative(values: Floats) -> bool:
    """Return whether values are finite, not negative, do not fall, and end above 0."""
    finite = bool(np.isfinite(values).all() and (values >= 0).all())
    return finite and not (np.diff(values) < 0).any() and bool(values[-1] > 0)


class Ruler:
    """Measure of exits on one record: their score, mean exit step, cost and agreement.

    Arguments are those of `sweep`.
    """

    def __init__(
        self,
        trajectory: Record,
        metric: Metric | None = None,
        costs: Costs | None = None,
        full_cost: float | None = None,
    ) -> None:
        self.trajectory = trajectory
        self._metric = metric
        self._costs = costs
        self._full_cost = full_cost
        task = trajectory.meaning
        if callable(metric) or (trajectory.labels is not None and task.metric is not None):
            self.metric = trajectory.score_name(metric)
            self._table = trajectory.score_table(metric)
        else:  # nothing says which answers are right
            self.metric = "score"
            self._table = None
        self._agrees: Floats | None = None
        if task.comparable:
            self._agrees = trajectory.agreement() * 1.0

    def point(self, policy: ExitPolicy) -> Point:
        """Return the score and cost of one policy."""
        return self.points([math.nan], self.trajectory.exit_steps(policy)[None], policy.needs)[0]

    def curve(self, family: Family) -> Curve:
        """Return the points of every value of a family."""
        points: list[Point] = []
        for places, steps in family.exit_steps(self.trajectory):
            values = [family.values[place] for place in places]
            points += self.points(values, steps, family.policy.needs)
        return Curve(family.threshold, self.metric, tuple(points), self.full_depth(), family)

    def full_depth(self) -> Point:
        """Return the point without any early exit, and without the cost of a policy."""
        steps = np.full((1, len(self.trajectory)), self.trajectory.num_steps)
        return replace(self.points([math.nan], steps, frozenset())[0], cost=1.0)

    def points(self, values: Sequence[float], steps: Ints, needs: frozenset[str]) -> list[Point]:
        """Return the point of each of several exits, `(thresholds, rows)`."""
        costs = as_costs(self._costs, self.trajectory.num_steps, needs)
        full_cost = self._full_cost
        if full_cost is None:
            full_cost = costs[-1]
        agreement = np.full(len(steps), math.nan)
        if self._agrees is not None:
            agreement = at_exits(self._agrees, steps).mean(axis=1)
        columns = (  # in the order of the fields of a `Point`
            np.array(values),
            self._scores(steps),
            steps.mean(axis=1),
            at_exits(costs / full_cost, steps).mean(axis=1),
            agreement,
        )
        return [Point(*row) for row in np.stack(columns, axis=1).tolist()]

    def _scores(self, steps: Ints) -> Floats:
        if self._table is not None:
            means: Floats = at_exits(self._table, steps).mean(axis=1)
            return means
        if callable(self._metric):
            return np.array([self._metric_at(each) for each in steps])
        return np.full(len(steps), math.nan)

    def _metric_at(self, steps: Ints) -> float:
        outputs, labels = self.trajectory.answers_at(steps)
        assert callable(self._metric)
        return float(self._metric(outputs, labels))
