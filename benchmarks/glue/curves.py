"""Curves: what every value of a policy's threshold gives, from the full-depth trajectory alone, as a run keeps it.

An entry of `splits.<split>.curves` of a result holds `policy` (the name of its family), `knob` (what its threshold is
called), `cost_unit` (``"flops"`` or ``"steps"``, relative to full depth without exits), and `points`, a list a column.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.glue.results import Result
from ponder import Trajectory
from ponder._utils.numerics import interpolate
from ponder.analysis.policy_grid import as_policy_grid
from ponder.analysis.sweeps import Curve, Point, sweep
from ponder.cost import Cost
from ponder.errors import ArgumentError
from ponder.policies import Confidence, Entropy, ExitPolicy, Patience, Quantile

__all__ = ["SPEED_UPS", "read_curve", "record_curves", "score_at"]

SPEED_UPS = (1.5, 2.0, 3.0)
"""The speed-ups in steps at which policies are compared."""

_TRIED, _KEPT = 2001, 41
_THRESHOLD = "knob"  # in the files, since the first of them


def record_curves(
    trajectory: Trajectory, policy: ExitPolicy, score: Callable[[Tensor, Tensor], float], cost: Cost | None = None
) -> list[dict[str, Any]]:
    """Sweep the threshold of a recipe's policy, first, and of the others that its model can be run with.

    Thresholds lie where they spread the mean exit steps evenly, and no label takes part in that: between values that
    are spread evenly themselves, all rows of a sure model may leave at once.

    A policy that reads nothing (full depth, a fixed step) has no curve. `score` is given outputs at the exits
    `(batch, labels)` and labels, and `cost` is the mean cost of an example; steps are counted where it is None. Numbers
    but thresholds are rounded to six digits.
    """
    if not policy.needs:
        return []
    others: list[ExitPolicy] = [] if trajectory.hazard_logits is None else [Quantile(0.5)]
    if trajectory.meaning.classes:
        others += [Patience(1), Entropy(0.2), Confidence(0.9)]
    own = [policy] if policy.tunable is not None else []
    policies = [*own, *(other for other in others if type(other) is not type(policy))]
    return [_entry(trajectory, each, score, cost) for each in policies]


def _entry(
    trajectory: Trajectory, policy: ExitPolicy, score: Callable[[Tensor, Tensor], float], cost: Cost | None
) -> dict[str, Any]:
    assert policy.tunable is not None
    costs = None if cost is None else cost.cumulative(policy.needs)
    full = None if cost is None else 1.0  # that of the plain encoder
    curve = sweep(trajectory, policy, _values(trajectory, policy), metric=score, costs=costs, full_cost=full)
    columns = {_THRESHOLD if name == "threshold" else name: values for name, values in curve.to_dict().items()}
    kept = {
        name: values if name == _THRESHOLD else [round(value, 6) for value in values]
        for name, values in columns.items()
        if all(map(math.isfinite, values))
    }
    named = {"policy": policy.to_dict()["name"], _THRESHOLD: curve.threshold}
    return {**named, "cost_unit": "steps" if cost is None else "flops", "points": kept}


def _values(trajectory: Trajectory, policy: ExitPolicy) -> list[float]:
    """Thresholds whose mean exit steps are nearest to evenly spread ones; of whole numbers all."""
    assert policy.tunable is not None
    tried = policy.tunable.values(trajectory.num_steps, trajectory.outputs.shape[-1], _TRIED)
    fit = [value for value in tried if fits(policy, value, trajectory)]
    if policy.tunable.whole:
        return fit
    made = as_policy_grid(policy, fit, trajectory).exit_steps(trajectory).double().mean(1)
    wanted = torch.linspace(1.0, trajectory.num_steps, _KEPT, dtype=torch.float64)
    nearest = (made.unsqueeze(0) - wanted.unsqueeze(1)).abs().argmin(1).tolist()
    return [fit[place] for place in sorted({0, *nearest, len(fit) - 1})]


def fits(policy: ExitPolicy, value: float, trajectory: Trajectory) -> bool:
    """Whether a policy can have a value of its threshold on such a trajectory (a normalised entropy ends at 1, say)."""
    try:
        trajectory.check(policy.with_threshold(value))
    except ArgumentError:
        return False
    return True


def score_at(curve: Curve, mean_exit_step: float) -> float | None:
    """The score on straight lines between the points of a curve; None where it does not reach so far."""
    steps = [point.mean_exit_step for point in curve.points]
    if not steps or not min(steps) <= mean_exit_step <= max(steps):
        return None
    return interpolate(steps, [point.score for point in curve.points], [mean_exit_step])[0]


def read_curve(run: Result, policy: str) -> Curve | None:
    """The curve of a family of policies over the reported splits (two for MNLI, of which it is the mean), or None."""
    entries = [entry for split in run.reported for entry in split.get("curves") or [] if entry["policy"] == policy]
    if not entries or len(entries) != len(run.reported):
        return None
    names = (_THRESHOLD, "score", "mean_exit_step", "cost", "agreement")
    tables = [_table(entry["points"], names) for entry in entries]
    if any(table[_THRESHOLD] != tables[0][_THRESHOLD] for table in tables):
        tables = _at_equal_steps(tables)
    columns = [
        [statistics.fmean(values) for values in zip(*(table[name] for table in tables), strict=True)] for name in names
    ]
    points = tuple(Point(*values) for values in zip(*columns, strict=True))
    full = Point(math.nan, run.score("full_depth"), float(run["num_steps"]), 1.0, 1.0)
    return Curve(entries[0][_THRESHOLD], "score", points, (), full)


def _table(points: Mapping[str, list[float]], names: Sequence[str]) -> dict[str, list[float]]:
    """The columns of a curve; NaN where one was not measured."""
    return {name: points.get(name, [math.nan] * len(points[_THRESHOLD])) for name in names}


def _at_equal_steps(tables: Sequence[dict[str, list[float]]]) -> list[dict[str, list[float]]]:
    """Curves over splits whose thresholds differ, read where their mean exit steps are the same."""
    own = [table["mean_exit_step"] for table in tables]
    low, high = max(map(min, own)), min(map(max, own))
    grid = sorted({step for steps in own for step in steps if low <= step <= high})
    return [
        {name: grid if name == "mean_exit_step" else interpolate(steps, table[name], grid) for name in table}
        for table, steps in zip(tables, own, strict=True)
    ]
