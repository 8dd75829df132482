"""Sweeps: what every value of a threshold gives, from one full-depth pass."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ponder._utils.files import write_text
from ponder._utils.renaming import renamed_attribute
from ponder._utils.validation import check_real
from ponder.analysis.metrics import Metric, MetricLike, as_metric
from ponder.analysis.policy_grid import PolicyGrid, PolicyGridLike, as_policy_grid
from ponder.engine.replay import check_replay, replay
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.recording import Recording, check_evaluated, check_has_rows
from ponder.plots import score_by_threshold
from ponder.policies.base import ExitPolicy
from ponder.policies.certified import without_certificate
from ponder.policies.fixed import LastStep

__all__ = ["Costs", "Curve", "Point", "curve_of", "measure", "sweep"]

Costs: TypeAlias = Sequence[float] | Tensor | Callable[[frozenset[str]], Sequence[float] | Tensor]
"""Costs of leaving after each step, `(steps,)`, or what gives them for what a policy reads, its `needs`."""


@dataclass(frozen=True)
class Point:
    """The score, the mean exit step and the cost of one policy on a trajectory.

    Args:
        threshold: Its value; NaN where there is none.
        score: Score of the predictions at the exits, the higher the better; NaN without labels.
        mean_exit_step: Mean of the rows' exit steps, from 1 to N.
        cost: Mean cost relative to full depth.
        agreement: Share of the rows whose prediction is that of full depth; NaN in regression.

    Example:
        >>> curve = trajectory.sweep(policies.Confidence, [0.3, 0.9])
        >>> [(point.threshold, point.mean_exit_step, round(point.score, 2)) for point in curve.points]
        [(0.3, 1.0, 0.33), (0.9, 2.0, 1.0)]
    """

    threshold: float
    score: float
    mean_exit_step: float
    cost: float
    agreement: float
    knob = renamed_attribute("knob", "threshold")


@dataclass(frozen=True, eq=False)
class Curve:
    """A table with a row for every value of the threshold, in the order of the grid.

    Args:
        threshold: Name of what differs between the policies.
        metric: Name of the score.
        points: What each value gives.
        policies: The policy of each value.
        full_depth: What no exit at all gives.

    Example:
        >>> outputs = torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]])
        >>> record = Trajectory(outputs, None, row_ids=torch.arange(1), labels=torch.tensor([1]))
        >>> curve = record.sweep(policies.Confidence, [0.7, 0.9])
        >>> curve.to_dict()["mean_exit_step"]
        [2.0, 3.0]
    """

    threshold: str
    metric: str
    points: tuple[Point, ...]
    policies: tuple[ExitPolicy, ...]
    full_depth: Point
    knob = renamed_attribute("knob", "threshold")

    def __repr__(self) -> str:
        values = [point.threshold for point in self.points]
        scores = [point.score for point in self.points]
        ends = f"{min(values):g} to {max(values):g}, {self.metric} {min(scores):.4g} to {max(scores):.4g}"
        return f"Curve({len(values)} values of {self.threshold} from {ends if values else 'none'})"

    def __len__(self) -> int:
        return len(self.points)

    def to_dict(self) -> dict[str, list[float]]:
        """One list a column: threshold, score, mean_exit_step, cost, agreement."""
        return {name: [getattr(point, name) for point in self.points] for name in Point.__dataclass_fields__}

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write the table, with a header line."""
        columns, text = self.to_dict(), io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        write_text(Path(path), text.getvalue())

    def plot(self, **options: Any) -> Any:
        """Draw the score against the threshold; see `ponder.plots.score_by_threshold`."""
        return score_by_threshold(self, **options)


def sweep(
    trajectory: Recording,
    policies: PolicyGridLike,
    grid: Iterable[float] | None = None,
    *,
    metric: MetricLike | None = None,
    costs: Costs | None = None,
    full_cost: float | None = None,
) -> Curve:
    """Try every value of a threshold on a trajectory.

    Policies that compare one statistic with the threshold (`policies.ThresholdPolicy`), alone or combined with others,
    are read off one pass; others are replayed value by value.

    Args:
        trajectory: A full-depth run.
        policies: A class of policies with a threshold, a policy whose threshold is moved, or a callable value → policy.
        grid: Values of the threshold, strictly rising or falling; those that the policy declares where None.
        metric: The score: a name, a callable (outputs, labels) → number, or None for the task's own. A callable is
            given the rows that have a label, or, with an answer a token, the tokens that do.
        costs: Cost of leaving after each step, `(steps,)`, in any unit, or a callable that gives it for what the
            policies read, such as `ponder.cost.Cost.cumulative`; n where None.
        full_cost: The cost that all are relative to, in the same unit: that of the plain model, 1.0 for those of
            `ponder.cost.Cost.cumulative`. Where None, that of going all the way with the policy, with what it reads.

    Raises:
        ArgumentError: An empty trajectory, one of training mode, a grid without order, a policy with no threshold,
            missing labels.
    """
    check_has_rows(trajectory)
    check_evaluated(trajectory)
    return curve_of(
        trajectory, as_policy_grid(policies, grid, trajectory), as_metric(metric, trajectory), costs, full_cost
    )


def curve_of(
    trajectory: Recording,
    grid_of_policies: PolicyGrid,
    metric: Metric | None,
    costs: Costs | None,
    full_cost: float | None,
) -> Curve:
    """What each policy of a grid gives on a trajectory that is not empty; costs as for `sweep`."""
    ruler = _Ruler(trajectory, metric, _relative(costs, grid_of_policies.policies, trajectory.num_steps, full_cost))
    return Curve(
        grid_of_policies.threshold,
        "score" if ruler.metric is None else ruler.metric.name,
        tuple(ruler.points(grid_of_policies)),
        grid_of_policies.policies,
        ruler.full_depth(),
    )


def measure(
    trajectory: Recording,
    policy: ExitPolicy,
    *,
    metric: MetricLike | None = None,
    costs: Costs | None = None,
    full_cost: float | None = None,
) -> Point:
    """What one policy gives on a trajectory; arguments as for `sweep`."""
    check_has_rows(trajectory)
    check_replay(trajectory, policy)
    relative = _relative(costs, [policy], trajectory.num_steps, full_cost)
    ruler = _Ruler(trajectory, as_metric(metric, trajectory), relative)
    if isinstance(without_certificate(policy), LastStep):
        return ruler.full_depth()
    return ruler.point(math.nan, replay(trajectory, policy).exit_step)


class _Ruler:
    """Measures exits on one trajectory: their score, mean exit step, cost and agreement with full depth."""

    def __init__(self, trajectory: Recording, metric: Metric | None, costs: Tensor) -> None:
        self.trajectory = trajectory
        self.metric = metric
        task = trajectory.meaning
        agrees = trajectory.agreement().double() if task.comparable else None
        steps = torch.arange(1, trajectory.num_steps + 1, dtype=torch.float64)
        self._columns: dict[str, Tensor | None] = {  # a value for each row and step, or for each step alone
            "score": None if metric is None else metric.per_row,
            "mean_exit_step": steps,
            "cost": costs,
            "agreement": agrees,
        }

    def full_depth(self) -> Point:
        point = self.point(math.nan, torch.full((len(self.trajectory),), self.trajectory.num_steps))
        return replace(point, cost=1.0)  # nobody is asked there

    def point(self, threshold: float, exit_step: Tensor) -> Point:
        exit_step = exit_step.cpu()
        means = {
            name: math.nan if each is None else float(_at_exits(each.cpu(), exit_step).mean())
            for name, each in self._columns.items()
        }
        if self.metric is not None and self.metric.per_row is None:
            means["score"] = self.metric.of_exits(self.trajectory, exit_step.to(self.trajectory.outputs.device))
        return Point(threshold, **means)

    def points(self, grid: PolicyGrid) -> list[Point]:
        places = grid.places(self.trajectory)
        if places is None or (self.metric is not None and self.metric.per_row is None):
            steps = grid.exit_steps(self.trajectory)
            return [self.point(value, exits) for value, exits in zip(grid.values, steps, strict=True)]
        order, rank = places
        means = {
            name: [math.nan] * len(order) if each is None else _means(each.cpu(), rank.cpu(), len(order)).tolist()
            for name, each in self._columns.items()
        }
        made = [
            Point(grid.values[place], **{name: column[i] for name, column in means.items()})
            for i, place in enumerate(order.tolist())
        ]
        return [made[i] for i in order.argsort().tolist()]


def _at_exits(each: Tensor, exit_step: Tensor) -> Tensor:
    """The values at the exits, `(batch,)`, of values `(batch, steps)`, or `(steps,)` where all rows have the same."""
    return each[exit_step - 1] if each.dim() == 1 else each.gather(1, exit_step.unsqueeze(1) - 1).squeeze(1)


def _means(each: Tensor, rank: Tensor, thresholds: int) -> Tensor:
    """Means over the rows of their value at the exit, for every threshold from early to late, `(thresholds,)` float64.

    Row b leaves at step n under the thresholds from rank[b, n−1] to rank[b, n]: it is counted at the first and no more
    at the second, and a running sum of the counts tells how many rows with the value 1, or at each step where all rows
    have the same values, a threshold has. Counts are exact. Values of other kinds are not added up so, since what was
    rounded beside the largest of them, or a NaN, would run on to all thresholds that come after: each has a sum of its
    own.

    Args:
        each: Values, `(batch, steps)` or `(steps,)`, float64.
        rank: `(batch, steps − 1)`, see `PolicyGrid.places`.
        thresholds: Their number.
    """
    rows, steps = rank.shape[0], rank.shape[1] + 1
    if each.dim() == 2 and bool(((each != 0.0) & (each != 1.0)).any()):
        exits = ((rank <= place).sum(1) + 1 for place in range(thresholds))
        return torch.stack([_at_exits(each, exit_step).mean() for exit_step in exits])
    edges = torch.cat([rank.new_zeros(rows, 1), rank, rank.new_full((rows, 1), thresholds)], dim=1)
    first, end = edges[:, :-1], edges[:, 1:]
    if each.dim() == 1:
        place, size = torch.arange(steps), (thresholds + 1) * steps
        came, went = (torch.bincount((edge * steps + place).flatten(), minlength=size) for edge in (first, end))
        return (came - went).view(-1, steps).cumsum(0)[:-1].double() @ each / rows
    came, went = (torch.bincount(edge[each == 1.0], minlength=thresholds + 1) for edge in (first, end))
    return (came - went).cumsum(0)[:-1].double() / rows


def _relative(costs: Costs | None, policies: Sequence[ExitPolicy], num_steps: int, full_cost: float | None) -> Tensor:
    """Costs relative to that of full depth, `(steps,)` float64, with policies that may read what any of them does."""
    if full_cost is not None:
        check_real("full_cost", full_cost, open_low=True, remedy="Pass 1.0 for costs relative to the plain model.")
    if callable(costs):
        costs = costs(frozenset[str]().union(*(policy.needs for policy in policies)))
    try:
        given = torch.arange(1, num_steps + 1) if costs is None else torch.as_tensor(costs)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ArgumentTypeError(
            "costs",
            expected=f"{num_steps} numbers, the cost of leaving after each step, or a callable that gives them",
            got=type(costs).__name__,
            remedy="For a ponder.cost.Cost, pass costs=cost.cumulative, full_cost=1.0, which is asked for what each "
            "policy reads, or costs=cost.cumulative(policy.needs), full_cost=1.0 for what one does.",
        ) from error
    given = given.double().cpu()
    rising = given.shape == (num_steps,) and bool((given > 0).all()) and bool((given.diff() >= 0).all())
    if not rising or not bool(given.isfinite().all()):
        raise ArgumentError(
            "costs",
            expected=f"{num_steps} positive numbers that do not fall, the cost of leaving after each step",
            got=given.tolist(),
            remedy="Pass model costs from ponder.cost, or leave it out to count steps.",
        )
    return given / (given[-1] if full_cost is None else full_cost)
