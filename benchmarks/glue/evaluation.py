"""What a trained model does: scores at full depth, at every step and at the exits, and three named speed-ups."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from benchmarks.glue import metrics
from benchmarks.glue.diagnostics import gains, optimum
from benchmarks.glue.metrics import answers
from benchmarks.glue.model import Collator
from benchmarks.glue.significance import pack
from benchmarks.glue.thresholds import record_curves
from benchmarks.tasks import Task
from ponder import Trajectory
from ponder.analysis.overthinking import overthinking_of
from ponder.cost import Cost, WallClock, measure_each, speed_up, wall_clock
from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.objectives import Objective
from ponder.policies import ExitPolicy, LastStep
from ponder.priors import Prior

__all__ = ["batches", "mean_cost", "measure_costs", "measure_speed_ups", "record", "summarise", "time_exits"]

Batch = dict[str, torch.Tensor]


def batches(data: Dataset, collate: Collator, size: int, device: torch.device) -> list[Batch]:
    """`data` in batches of similar length (the longest first), on `device`."""
    order = np.argsort(data["length"], kind="stable")[::-1]
    made = []
    for start in range(0, len(order), size):
        rows = data.select(order[start : start + size].tolist())
        made.append({k: v.to(device) for k, v in collate(list(rows)).items()})
    return made


@torch.no_grad()
def record(
    model: PonderForSequenceClassification, data: Dataset, collate: Collator, batch_size: int = 64
) -> Trajectory:
    """The full-depth trajectory of `data`, in its order, on the CPU; with features where the policy reads them."""
    keep = "features" in model.policy.needs
    parts = [
        model.unroll(**batch, keep_features=keep).detach().map(torch.Tensor.cpu)
        for batch in batches(data, collate, batch_size, model.device)
    ]
    whole = Trajectory.cat(parts)
    place = {row: position for position, row in enumerate(whole.row_ids.tolist())}
    order = torch.tensor([place[row] for row in data["idx"]])
    return whole.map(lambda tensor: tensor[order])


def summarise(
    task: Task,
    trajectory: Trajectory,
    policy: ExitPolicy,
    cost: Cost | None = None,
    *,
    own: ExitPolicy | None = None,
    objective: Objective | None = None,
    prior: Prior | None = None,
) -> dict[str, Any]:
    """Scores of one split from its trajectory.

    Args:
        task: The task.
        trajectory: With labels.
        policy: Decides.
        cost: Mean cost of an example, for the curves; steps are counted where None.
        own: The recipe's policy, whose threshold the first curve varies; `policy` where None.
        objective: That the model was trained with.
        prior: Of the model.

    Returns:
        `examples`; `full_depth`, `exits` and `per_step` scores; `mean_exit_step`; `exit_histogram` over the steps;
        `halting`, the mean of p(n|x), where there are hazards; `predictions` at the exits as text (labels are GLUE's,
        and are not kept); `overthinking`, for classes, the shares of rows `right` at each step, `right_by` then, and
        `lost`, right at some step and wrong at the last; `gains`, where the model was trained to exit (see
        `benchmarks.glue.diagnostics`); `optimum`, what its Lambda head could have learnt (see there);
        `curves` over the thresholds of policies.
    """
    assert trajectory.labels is not None
    labels, steps = trajectory.labels.numpy(), trajectory.num_steps
    exits, own = trajectory.replay(policy), own or policy

    def score(outputs: torch.Tensor) -> dict[str, float]:
        return metrics.score(task, answers(task, outputs.float().numpy()), labels)

    per_step = [score(outputs) for outputs in trajectory.outputs.unbind(1)]
    halting = None if trajectory.hazard_logits is None else trajectory.halting.pmf.mean(0).tolist()
    return {
        "examples": len(trajectory),
        "full_depth": per_step[-1],
        "exits": score(exits.outputs),
        "per_step": [of_step["score"] for of_step in per_step],
        "mean_exit_step": exits.exit_step.double().mean().item(),
        "exit_histogram": torch.bincount(exits.exit_step, minlength=steps + 1)[1:].tolist(),
        "halting": halting,
        "predictions": pack(task, answers(task, exits.outputs.float().numpy())),
        "overthinking": None if task.kind == "regression" else dataclasses.asdict(overthinking_of(trajectory)),
        "gains": gains(trajectory) if own.needs else None,
        "optimum": None if objective is None else optimum(trajectory, objective, prior),
        "curves": record_curves(trajectory, own, lambda outputs, _: score(outputs)["score"], cost),
    }


def measure_costs(model: PonderForSequenceClassification, data: Dataset, collate: Collator) -> list[Cost]:
    """FLOPs of the parts of the model for each example alone at its true length."""
    whole = {name: tensor.to(model.device) for name, tensor in collate(list(data)).items()}
    mask, types = whole["attention_mask"], whole.get("token_type_ids")
    return list(measure_each(model.ponder, whole["input_ids"], attention_mask=mask, token_type_ids=types))


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """The mean of the costs of examples, part by part."""
    columns = {field.name: [getattr(cost, field.name) for cost in costs] for field in dataclasses.fields(Cost)}
    return Cost(**{name: _mean_of(values) for name, values in columns.items()})


def _mean_of(values: Sequence[Any]) -> Any:
    """The mean of numbers, or of tuples of numbers place by place."""
    if isinstance(values[0], tuple):
        return tuple(_mean_of(place) for place in zip(*values, strict=True))
    return sum(values) / len(values)


def measure_speed_ups(
    model: PonderForSequenceClassification,
    data: Dataset,
    collate: Collator,
    policy: ExitPolicy,
    exit_step: torch.Tensor,
    costs: Sequence[Cost],
    *,
    baseline: PonderForSequenceClassification | None = None,
    batch_size: int = 32,
    pairs: int = 5,
) -> dict[str, Any]:
    """How much cheaper exiting is than running to the last step, as three named ratios.

    Args:
        model: In evaluation mode.
        data: Tokenised examples, for wall-clock.
        collate: Pads them.
        policy: Decides.
        exit_step: Where each example leaves, `(examples,)`.
        costs: Of each of these examples, from `measure_costs`.
        baseline: The model that runs to its last step, for wall-clock; `model` itself where None.
        batch_size: Examples a batch, for wall-clock.
        pairs: Timings of full depth and exits, taken in turn.

    Returns:
        `steps`, `flops`, and `wall_clock` (median of the pairs' ratios) with `wall_clock_range`.
    """
    timed = batches(data, collate, batch_size, model.device)
    clock = time_exits(model, timed, policy, baseline=baseline, pairs=pairs)
    found = speed_up(exit_step, model.ponder.num_steps, costs=costs, needs=policy.needs)
    return {
        "steps": found.steps,
        "flops": found.flops,
        "wall_clock": clock.median,
        "wall_clock_range": [clock.low, clock.high],
        "wall_clock_batch_size": batch_size,
        "threads": torch.get_num_threads(),
    }


def time_exits(
    model: PonderForSequenceClassification,
    data: Sequence[Batch],
    policy: ExitPolicy,
    *,
    baseline: PonderForSequenceClassification | None = None,
    pairs: int = 5,
    most: int = 6,
) -> WallClock:
    """Time full depth and a policy in turn, on at most `most` batches, evenly spread over the lengths."""
    places = {round(i * (len(data) - 1) / max(most - 1, 1)) for i in range(most)}
    timed = [data[place] for place in sorted(places)] if len(data) > most else data
    full = baseline or model
    return wall_clock(lambda: _run(full, timed, LastStep()), lambda: _run(model, timed, policy), pairs=pairs)


@torch.inference_mode()
def _run(model: PonderForSequenceClassification, data: Sequence[Batch], policy: ExitPolicy) -> list[torch.Tensor]:
    """The exit steps of each batch."""
    unlabelled = [{name: tensor for name, tensor in batch.items() if name != "labels"} for batch in data]
    return [model(**batch, policy=policy).exit_step for batch in unlabelled]
