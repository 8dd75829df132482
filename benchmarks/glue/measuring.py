"""Measurements of a trained model: scores at every step and at the exits, curves, speed-ups."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from benchmarks import metrics
from benchmarks.examples import Collator
from benchmarks.glue.rows import pack_rows
from benchmarks.tasks import Task
from ponder import Trajectory
from ponder.calibration import cost, sweep
from ponder.calibration.cost import Breakdown
from ponder.calibration.families import family_of
from ponder.calibration.records import serves
from ponder.calibration.sweeps import Curve
from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.policies import Confidence, Entropy, ExitPolicy, LastStep, Patience, Quantile

__all__ = ["costs_of", "mean_cost", "record", "speed_ups", "summarise"]

_TIMED = 6  # batches
_TRIED = 2001
_KEPT = 41
_THRESHOLD = "knob"  # its name in the files, since the first of them


def record(
    model: PonderForSequenceClassification,
    data: Dataset,
    *,
    features: bool = False,
    num_steps: int | None = None,
) -> Trajectory:
    """Return the full-depth trajectory of `data`, with features if the policy reads them."""
    keep = features or "features" in model.policy.needs
    ids = list(data["idx"])
    return model.record(
        list(data), batch_size=64, row_ids=ids, keep_features=keep, num_steps=num_steps
    )


def summarise(
    task: Task, trajectory: Trajectory, policy: ExitPolicy, mean: Breakdown | None = None
) -> dict[str, Any]:
    """Return the scores of one split from its trajectory.

    Args:
        task: The task.
        trajectory: A full-depth run of the split, with labels.
        policy: The exit policy; the first curve varies its threshold.
        mean: Mean cost of an example, for the curves; steps are counted where None.

    Returns:
        `examples`; `full_depth`, `exits` and `per_step` scores; `mean_exit_step`; `exit_histogram`
        over the steps; `halting`, the mean of p(n|x), None without hazards; `predictions` at the
        exits as text (labels belong to GLUE and are not kept); `rows`, the answers of every row at
        every step (`benchmarks.glue.rows`); `curves` over the thresholds of policies.
    """
    assert trajectory.labels is not None
    labels = trajectory.labels.numpy()
    steps = trajectory.num_steps
    exits = trajectory.replay(policy)

    def score(outputs: Tensor, of: Any = labels) -> dict[str, float]:
        return metrics.score(task, metrics.answers(task, outputs.float().numpy()), np.asarray(of))

    per_step = [score(outputs) for outputs in trajectory.outputs.unbind(1)]
    halting = None
    if trajectory.hazard_logits is not None:
        halting = trajectory.halting.pmf.mean(0).tolist()
    return {
        "examples": len(trajectory),
        "full_depth": per_step[-1],
        "exits": score(exits.outputs),
        "per_step": [of_step["score"] for of_step in per_step],
        "mean_exit_step": exits.exit_step.double().mean().item(),
        "exit_histogram": torch.bincount(exits.exit_step, minlength=steps + 1)[1:].tolist(),
        "halting": halting,
        "rows": pack_rows(task, trajectory),
        "predictions": metrics.pack(task, metrics.answers(task, exits.outputs.float().numpy())),
        "curves": _curves(
            trajectory, policy, lambda outputs, of: score(outputs, of)["score"], mean
        ),
    }


def _curves(
    trajectory: Trajectory,
    policy: ExitPolicy,
    score: Callable[[Tensor, Tensor], float],
    mean: Breakdown | None,
) -> list[dict[str, Any]]:
    """Sweep the threshold of a recipe's policy, and then those of other policies.

    Thresholds are placed so that the mean exit steps are evenly spaced, without using labels. A
    policy that reads nothing (full depth, a fixed step) has no curve. An entry holds `policy`,
    `knob` (the name of its threshold), `cost_unit` (``"flops"`` or ``"steps"``, relative to full
    depth without exits), and `points`, a list for each column.
    """
    if not policy.needs:
        return []
    swept = [policy] if policy.tunable is not None else []
    swept += [other for other in _others(trajectory) if type(other) is not type(policy)]
    made = []
    for each in swept:
        options: dict[str, Any] = {"metric": score}
        if mean is not None:
            options |= {"costs": mean.cumulative, "full_cost": 1.0}
        curve = sweep(trajectory, each, thresholds(trajectory, each), **options)
        made.append(
            {
                "policy": each.to_dict()["name"],
                _THRESHOLD: curve.threshold,
                "cost_unit": "steps" if mean is None else "flops",
                "points": _points(curve),
            }
        )
    return made


def _others(trajectory: Trajectory) -> list[ExitPolicy]:
    """Return the policies that are swept on every trajectory that they can be replayed on."""
    others: list[ExitPolicy] = []
    if trajectory.hazard_logits is not None:
        others.append(Quantile(0.5))
    if trajectory.meaning.classes:
        others += [Patience(1), Entropy(0.2), Confidence(0.9)]
    return others


def _points(curve: Curve) -> dict[str, list[float]]:
    """Return the columns of a curve, without those that are not finite."""
    columns = curve.to_dict()
    points = {_THRESHOLD: columns.pop("threshold")}
    for name, values in columns.items():
        if all(map(math.isfinite, values)):
            points[name] = [round(value, 6) for value in values]
    return points


def thresholds(trajectory: Trajectory, policy: ExitPolicy) -> list[float]:
    """Return thresholds whose mean exit steps are evenly spaced; all of them if they are integers."""
    assert policy.tunable is not None
    tried = policy.tunable.values(trajectory.num_steps, trajectory.width, _TRIED)
    fit = [value for value in tried if serves(trajectory, policy.with_threshold(value))]
    if policy.tunable.whole:
        return fit
    made = np.concatenate(
        [steps.mean(1) for _, steps in family_of(policy, fit, trajectory).exit_steps(trajectory)]
    )
    wanted = np.linspace(1.0, trajectory.num_steps, _KEPT)
    nearest = np.abs(made[None] - wanted[:, None]).argmin(1).tolist()
    return [fit[place] for place in sorted({0, *nearest, len(fit) - 1})]


def costs_of(model: PonderForSequenceClassification, data: Dataset) -> list[Breakdown]:
    """Return the FLOPs of the parts of the model for each example; equal lengths cost the same."""
    by_length: dict[int, Breakdown] = {}
    made = []
    for row in data:
        length = len(row["input_ids"])
        if length not in by_length:
            names = ("attention_mask", "token_type_ids")
            context = {
                name: torch.tensor([row[name]], device=model.device)
                for name in names
                if name in row
            }
            ids = torch.tensor([row["input_ids"]], device=model.device)
            by_length[length] = cost.measure(model.ponder, ids, **context)
        made.append(by_length[length])
    return made


def mean_cost(costs: Sequence[Breakdown]) -> Breakdown:
    """Return the mean cost of examples, part by part and step by step."""
    names = [field.name for field in dataclasses.fields(Breakdown)]
    columns = {
        name: np.mean([getattr(each, name) for each in costs], axis=0).tolist() for name in names
    }
    parts: dict[str, Any] = {
        name: tuple(it) if isinstance(it, list) else it for name, it in columns.items()
    }
    return dataclasses.replace(costs[0], **parts)


def speed_ups(
    model: PonderForSequenceClassification,
    data: Dataset,
    collate: Collator,
    exit_step: Tensor,
    costs: Sequence[Breakdown],
    *,
    batch_size: int = 32,
    pairs: int = 5,
) -> dict[str, Any]:
    """Return how much cheaper exiting is than running to the last step, as three named ratios.

    Args:
        model: The model, in evaluation mode.
        data: Tokenised examples, for wall-clock: at most six batches, evenly spread over the
            lengths.
        collate: Pads them.
        exit_step: The exit step of each example, `(examples,)`.
        costs: Cost of each of these examples.
        batch_size: Examples a batch, for wall-clock.
        pairs: Timings of full depth and exits, taken in turn; their median counts.
    """
    by_length = np.argsort(data["length"], kind="stable")[::-1]
    starts = range(0, len(by_length), batch_size)
    places = {starts[round(i * (len(starts) - 1) / (_TIMED - 1))] for i in range(_TIMED)}
    timed = []
    for place in sorted(places):
        batch = collate(list(data.select(by_length[place : place + batch_size])))
        timed.append(
            {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
        )

    @torch.inference_mode()
    def run(policy: ExitPolicy) -> list[Tensor]:
        return [model(**batch, policy=policy).exit_step for batch in timed]

    clock = cost.wall_clock(lambda: run(LastStep()), lambda: run(model.policy), pairs=pairs)
    found = cost.speed_up(exit_step, model.ponder.num_steps, costs=costs, needs=model.policy.needs)
    return {
        "steps": found.steps,
        "flops": found.flops,
        "wall_clock": clock.median,
        "wall_clock_range": [clock.low, clock.high],
        "wall_clock_batch_size": batch_size,
        "threads": torch.get_num_threads(),
    }
