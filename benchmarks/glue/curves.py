"""Curves of a run: what every value of a policy's knob gives, as they are kept in the JSON result and read from it.

They come from the full-depth trajectory alone. An entry of `splits.<split>.curves` holds `policy` (the name of its
family), `knob`, `cost_unit` (``"flops"`` or ``"steps"``, relative to full depth without exits), and `points`,
one list a column.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from benchmarks.glue.results import Result
from ponder import Trajectory
from ponder.analysis.sweeps import Curve, Point, sweep
from ponder.cost import Cost
from ponder.errors import ArgumentError
from ponder.policies import Confidence, Entropy, ExitPolicy, Patience, Quantile

__all__ = ["SPEED_UPS", "candidates", "families", "read_curve", "record_curves"]

SPEED_UPS = (1.5, 2.0, 3.0)
"""In steps, at which policies are compared."""

_VALUES = 21


def record_curves(
    trajectory: Trajectory, policy: ExitPolicy, score: Callable[[Tensor, Tensor], float], cost: Cost | None = None
) -> list[dict[str, Any]]:
    """Sweep the knob of a recipe's policy, and of the others that its model can be run with.

    Args:
        trajectory: With labels.
        policy: The recipe's; one that reads nothing (full depth, a fixed step) has no curve.
        score: (outputs at the exits `(batch, labels)`, labels `(batch,)`) → GLUE's score.
        cost: Mean cost of an example; steps are counted where None.

    Returns:
        Entries as above, the recipe's own policy first; numbers are rounded to six digits.
    """
    return [_entry(trajectory, family, grid, score, cost) for family, grid in families(trajectory, policy)]


def families(trajectory: Trajectory, policy: ExitPolicy) -> Iterator[tuple[ExitPolicy, list[float]]]:
    """A policy of each family that fits, and values of its knob; the first is `policy`, where it has a knob."""
    for family in candidates(policy, trajectory.hazard_logits is not None, trajectory.task):
        assert family.tunable is not None
        values = family.tunable.values(trajectory.num_steps, trajectory.outputs.shape[-1], _VALUES)
        yield family, [value for value in values if _fits(family, value, trajectory)]


def candidates(policy: ExitPolicy, has_hazard: bool, task: str | None) -> list[ExitPolicy]:
    """A policy of each family that a model can be run with, `policy` first, where it has a knob.

    Args:
        policy: The recipe's; one that reads nothing has been trained for its depth, and there are no others.
        has_hazard: Whether there is a Lambda head.
        task: ``"regression"`` has no classes to be sure of.
    """
    if not policy.needs:
        return []
    others: list[ExitPolicy] = [Quantile(0.5)] if has_hazard else []
    if task != "regression":
        others += [Patience(1), Entropy(0.2), Confidence(0.9)]
    own = [policy] if policy.tunable is not None else []
    return [*own, *(other for other in others if type(other) is not type(policy))]


def read_curve(run: Result, policy: str) -> Curve | None:
    """The curve of a family of policies over the reported splits (two for MNLI, of which it is the mean), or None."""
    entries = [entry for split in run.reported for entry in split.get("curves") or [] if entry["policy"] == policy]
    if not entries or len(entries) != len(run.reported):
        return None
    columns = {name: _mean([entry["points"][name] for entry in entries]) for name in entries[0]["points"]}
    nothing = [math.nan] * len(columns["knob"])
    points = [
        Point(*values)
        for values in zip(*(columns.get(name, nothing) for name in Point.__dataclass_fields__), strict=True)
    ]
    full = Point(math.nan, run.score("full_depth"), float(run["num_steps"]), 1.0, 1.0)
    return Curve(entries[0]["knob"], "score", tuple(points), (), full)


def _entry(
    trajectory: Trajectory,
    family: ExitPolicy,
    grid: list[float],
    score: Callable[[Tensor, Tensor], float],
    cost: Cost | None,
) -> dict[str, Any]:
    costs = None if cost is None else cost.cumulative(family.needs)
    curve = sweep(trajectory, family, grid, metric=score, costs=costs)
    columns = curve.to_dict()
    if costs is not None:  # a sweep is relative to its own last step, which pays for what the policy reads
        columns["cost"] = [value * float(costs[-1]) for value in columns["cost"]]
    kept = {
        name: [round(value, 6) for value in values]
        for name, values in columns.items()
        if all(map(math.isfinite, values))
    }
    unit = "steps" if cost is None else "flops"
    return {"policy": family.to_dict()["name"], "knob": curve.knob, "cost_unit": unit, "points": kept}


def _fits(family: ExitPolicy, value: float, trajectory: Trajectory) -> bool:
    try:
        trajectory.check(family.with_threshold(value))
    except ArgumentError:
        return False
    return True


def _mean(columns: list[list[float]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*columns, strict=True)]
