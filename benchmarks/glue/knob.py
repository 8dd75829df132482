"""The policy's knob, chosen on the part of train that was held out, after training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.glue import metrics
from benchmarks.glue.config import RunConfig
from benchmarks.glue.model import answers
from benchmarks.glue.tasks import GlueTask
from ponder import Trajectory
from ponder.calibration import calibrate
from ponder.policies import ExitPolicy

__all__ = ["ChosenKnob", "choose_knob"]


@dataclass(frozen=True)
class ChosenKnob:
    """A policy, and how it came about.

    Args:
        policy: The recipe's or the run's own, its knob turned.
        record: Plain JSON: `chosen_on`, and where that is the held-out part, `keeps` or `budget`, `met` and
            `statement`.
    """

    policy: ExitPolicy
    record: dict[str, Any]


def choose_knob(
    config: RunConfig, task: GlueTask, policy: ExitPolicy, recorded: Mapping[str, Trajectory]
) -> ChosenKnob:
    """The cheapest knob that keeps a share of the held-out score at full depth, or the best within a budget of steps.

    Where no knob keeps the share, all rows run to the last step; where none is within the budget, it is the cheapest.

    Where `RunConfig.knob` is ``"recipe"`` the policy stays as it is, and so does one with no knob, one that does not
    look at the input (its depth was fixed in training), and, where a share is to be kept, one of a score of 0 or less.

    Args:
        config: The run.
        task: For the score.
        policy: The policy whose knob is turned.
        recorded: Full-depth trajectories, `held_out` among them.
    """
    if config.knob == "recipe" or policy.tunable is None or not policy.needs:
        return ChosenKnob(policy, {"chosen_on": "recipe"})

    def score(outputs: Tensor, labels: Tensor) -> float:
        return metrics.score(task, answers(task, outputs.float().numpy()), labels.numpy())["score"]

    held_out = recorded["held_out"]
    assert held_out.labels is not None
    if config.knob == "held_out" and not score(held_out.outputs[:, -1], held_out.labels) > 0.0:
        return ChosenKnob(
            policy, {"chosen_on": "recipe", "statement": "the held-out score at full depth is not above 0"}
        )
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
            f"no knob leaves at ×{config.budget:g} in steps; the cheapest is {chosen.curve.knob} = {cheapest.knob:.6g} "
            f"(score {cheapest.score:.4f} against {chosen.curve.full_depth.score:.4f} at full depth, mean exit step "
            f"{cheapest.mean_exit_step:.2f}, on {len(held_out)} rows)"
        )
    return ChosenKnob(policy, {"chosen_on": "held_out", **asked, "met": chosen.met, "statement": statement})
