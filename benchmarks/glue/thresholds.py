"""Thresholds of policies: what every value gives, as a run keeps it, and the one that the held-out part chooses.

Both come from the full-depth trajectory alone. An entry of `splits.<split>.curves` of a result holds `policy` (the name
of its family), `knob` (the name of the threshold), `cost_unit` (``"flops"`` or ``"steps"``, relative to full depth
without exits), and `points`, one list a column.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.glue import metrics
from benchmarks.glue.config import RunConfig
from benchmarks.glue.results import Result
from benchmarks.tasks import Task
from ponder import Trajectory
from ponder.analysis.sweeps import Curve, Point, sweep
from ponder.calibration import calibrate
from ponder.cost import Cost
from ponder.errors import ArgumentError
from ponder.policies import Confidence, Entropy, ExitPolicy, Patience, Quantile

__all__ = ["SPEED_UPS", "ChosenThreshold", "candidates", "choose_threshold", "read_curve", "record_curves"]

SPEED_UPS = (1.5, 2.0, 3.0)
"""In steps, at which policies are compared."""

_VALUES = 21
_KNOB = "knob"  # what files have called the threshold since the first
_COLUMNS = tuple(_KNOB if name == "threshold" else name for name in Point.__dataclass_fields__)


def candidates(policy: ExitPolicy, has_hazard: bool, task: str | None) -> list[ExitPolicy]:
    """A policy of each family that a model can be run with, `policy` first, where it has a threshold."""
    if not policy.needs:
        return []
    others: list[ExitPolicy] = [Quantile(0.5)] if has_hazard else []
    if task != "regression":
        others += [Patience(1), Entropy(0.2), Confidence(0.9)]
    own = [policy] if policy.tunable is not None else []
    return [*own, *(other for other in others if type(other) is not type(policy))]


def record_curves(
    trajectory: Trajectory, policy: ExitPolicy, score: Callable[[Tensor, Tensor], float], cost: Cost | None = None
) -> list[dict[str, Any]]:
    """Sweep the threshold of a recipe's policy, and of the others that its model can be run with.

    Args:
        trajectory: With labels.
        policy: The recipe's; one that reads nothing (full depth, a fixed step) has no curve.
        score: (outputs at the exits `(batch, labels)`, labels `(batch,)`) → GLUE's score.
        cost: Mean cost of an example; steps are counted where None.

    Returns:
        Entries as above, the recipe's own policy first; numbers are rounded to six digits.
    """
    families = candidates(policy, trajectory.hazard_logits is not None, trajectory.task)
    return [_entry(trajectory, family, score, cost) for family in families]


def _entry(
    trajectory: Trajectory, family: ExitPolicy, score: Callable[[Tensor, Tensor], float], cost: Cost | None
) -> dict[str, Any]:
    assert family.tunable is not None
    values = family.tunable.values(trajectory.num_steps, trajectory.outputs.shape[-1], _VALUES)
    costs = None if cost is None else cost.cumulative(family.needs)
    curve = sweep(trajectory, family, [v for v in values if _fits(family, v, trajectory)], metric=score, costs=costs)
    columns = {_KNOB if name == "threshold" else name: values for name, values in curve.to_dict().items()}
    if costs is not None:  # a sweep is relative to its own last step, which pays for what the policy reads
        columns["cost"] = [value * float(costs[-1]) for value in columns["cost"]]
    kept = {
        name: [round(value, 6) for value in values]
        for name, values in columns.items()
        if all(map(math.isfinite, values))
    }
    unit = "steps" if cost is None else "flops"
    return {"policy": family.to_dict()["name"], "knob": curve.threshold, "cost_unit": unit, "points": kept}


def _fits(family: ExitPolicy, value: float, trajectory: Trajectory) -> bool:
    try:
        trajectory.check(family.with_threshold(value))
    except ArgumentError:
        return False
    return True


def read_curve(run: Result, policy: str) -> Curve | None:
    """The curve of a family of policies over the reported splits (two for MNLI, of which it is the mean), or None."""
    entries = [entry for split in run.reported for entry in split.get("curves") or [] if entry["policy"] == policy]
    if not entries or len(entries) != len(run.reported):
        return None
    nothing = [math.nan] * len(entries[0]["points"]["knob"])
    columns = [
        [statistics.fmean(values) for values in zip(*(e["points"].get(name, nothing) for e in entries), strict=True)]
        for name in _COLUMNS
    ]
    points = tuple(Point(*values) for values in zip(*columns, strict=True))
    full = Point(math.nan, run.score("full_depth"), float(run["num_steps"]), 1.0, 1.0)
    return Curve(entries[0]["knob"], "score", points, (), full)


@dataclass(frozen=True)
class ChosenThreshold:
    """A policy, and how it came about."""

    policy: ExitPolicy
    record: dict[str, Any]


def choose_threshold(
    config: RunConfig, task: Task, policy: ExitPolicy, recorded: Mapping[str, Trajectory]
) -> ChosenThreshold:
    """The cheapest threshold that keeps a share of the held-out score, or the best within a budget of steps.

    Where none keeps the share, all rows run to the last step; where none is within the budget, it is the cheapest.

    Where `RunConfig.knob` is ``"recipe"`` the policy stays as it is, and so does one with no threshold, one that does
    not look at the input (its depth was fixed in training), and, where a share is to be kept, one of a score of 0 or
    less.

    Args:
        config: The run.
        task: For the score.
        policy: The policy whose threshold is chosen.
        recorded: Full-depth trajectories, `held_out` among them.
    """
    if config.knob == "recipe" or policy.tunable is None or not policy.needs:
        return ChosenThreshold(policy, {"chosen_on": "recipe"})

    def score(outputs: Tensor, labels: Tensor) -> float:
        return metrics.score(task, metrics.answers(task, outputs.float().numpy()), labels.numpy())["score"]

    held_out = recorded["held_out"]
    assert held_out.labels is not None
    if config.knob == "held_out" and not score(held_out.outputs[:, -1], held_out.labels) > 0.0:
        statement = "the held-out score at full depth is not above 0"
        return ChosenThreshold(policy, {"chosen_on": "recipe", "statement": statement})
    if config.knob == "budget":
        asked = {"budget": config.budget}
        chosen = calibrate(held_out, policy, metric=score, at_most_steps=held_out.num_steps / config.budget)
    else:
        asked = {"keeps": config.knob_keeps}
        chosen = calibrate(held_out, policy, metric=score, at_least=config.knob_keeps)
    policy, statement = chosen.policy, chosen.statement
    if config.knob == "budget" and not chosen.met:
        place, cheapest = min(enumerate(chosen.curve.points), key=lambda point: point[1].mean_exit_step)
        policy = chosen.curve.policies[place]
        statement = (
            f"no threshold leaves at ×{config.budget:g} in steps; the cheapest is {chosen.curve.threshold} = "
            f"{cheapest.threshold:.6g} (score {cheapest.score:.4f} against {chosen.curve.full_depth.score:.4f} at full "
            f"depth, mean exit step {cheapest.mean_exit_step:.2f}, on {len(held_out)} rows)"
        )
    return ChosenThreshold(policy, {"chosen_on": "held_out", **asked, "met": chosen.met, "statement": statement})
