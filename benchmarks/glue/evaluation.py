"""What a trained model does: scores at full depth, at every step and at the exits, and three named speed-ups."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from benchmarks import metrics
from benchmarks.examples import Collator
from benchmarks.glue.curves import record_curves
from benchmarks.metrics import answers, pack
from benchmarks.tasks import Task
from ponder import Trajectory
from ponder.cost import Cost, measure_each, speed_up, wall_clock
from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.policies import ExitPolicy, LastStep

__all__ = ["mean_cost", "measure_costs", "measure_speed_ups", "record", "summarise"]

_TIMED = 6  # batches


def record(model: PonderForSequenceClassification, data: Dataset, batch_size: int = 64) -> Trajectory:
    """The full-depth trajectory of `data`, with its own row ids, and with features where the policy reads them."""
    recorded = model.record(data, batch_size=batch_size, keep_features="features" in model.policy.needs)
    return dataclasses.replace(recorded, row_ids=torch.tensor(data["idx"]))


def summarise(task: Task, trajectory: Trajectory, policy: ExitPolicy, cost: Cost | None = None) -> dict[str, Any]:
    """Scores of one split from its trajectory.

    Args:
        task: The task.
        trajectory: A full-depth run of the split, with labels.
        policy: Decides; the first curve varies its threshold.
        cost: Mean cost of an example, for the curves; steps are counted where None.

    Returns:
        `examples`; `full_depth`, `exits` and `per_step` scores; `mean_exit_step`; `exit_histogram` over the steps;
        `halting`, the mean of p(n|x), where there are hazards; `predictions` at the exits as text (labels are GLUE's,
        and are not kept); `curves` over the thresholds of policies.
    """
    assert trajectory.labels is not None
    labels, steps, exits = trajectory.labels.numpy(), trajectory.num_steps, trajectory.replay(policy)

    def score(outputs: torch.Tensor) -> dict[str, float]:
        return metrics.score(task, answers(task, outputs.float().numpy()), labels)

    per_step = [score(outputs) for outputs in trajectory.outputs.unbind(1)]
    return {
        "examples": len(trajectory),
        "full_depth": per_step[-1],
        "exits": score(exits.outputs),
        "per_step": [of_step["score"] for of_step in per_step],
        "mean_exit_step": exits.exit_step.double().mean().item(),
        "exit_histogram": torch.bincount(exits.exit_step, minlength=steps + 1)[1:].tolist(),
        "halting": None if trajectory.hazard_logits is None else trajectory.halting.pmf.mean(0).tolist(),
        "predictions": pack(task, answers(task, exits.outputs.float().numpy())),
        "curves": record_curves(trajectory, policy, lambda outputs, _: score(outputs)["score"], cost),
    }


def measure_costs(model: PonderForSequenceClassification, data: Dataset, collate: Collator) -> list[Cost]:
    """FLOPs of the parts of the model for each example alone at its true length."""
    whole = {name: tensor.to(model.device) for name, tensor in collate(list(data)).items()}
    mask, types = whole["attention_mask"], whole.get("token_type_ids")
    return list(measure_each(model.ponder, whole["input_ids"], attention_mask=mask, token_type_ids=types))


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """The mean of the costs of examples, part by part; of parts that are one number a step, step by step."""
    names = [field.name for field in dataclasses.fields(Cost) if field.name != "hazard_reads_features"]
    columns = {name: np.mean([getattr(cost, name) for cost in costs], axis=0).tolist() for name in names}
    parts: dict[str, Any] = {name: tuple(it) if isinstance(it, list) else it for name, it in columns.items()}
    return dataclasses.replace(costs[0], **parts)


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
        model: The model, in evaluation mode.
        data: Tokenised examples, for wall-clock: at most six batches, evenly spread over the lengths.
        collate: Pads them.
        policy: Decides.
        exit_step: The step at which each example leaves, `(examples,)`.
        costs: Cost of each of these examples, from `measure_costs`.
        baseline: The model that runs to its last step, for wall-clock; `model` itself where None.
        batch_size: Examples a batch, for wall-clock.
        pairs: Timings of full depth and exits, taken in turn; their median counts.
    """
    by_length = np.argsort(data["length"], kind="stable")[::-1]
    starts = range(0, len(by_length), batch_size)
    places = {starts[round(i * (len(starts) - 1) / (_TIMED - 1))] for i in range(_TIMED)}
    timed = []
    for place in sorted(places):
        batch = collate(list(data.select(by_length[place : place + batch_size])))
        timed.append({name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"})

    @torch.inference_mode()
    def run(which: PonderForSequenceClassification, policy: ExitPolicy) -> list[torch.Tensor]:
        return [which(**batch, policy=policy).exit_step for batch in timed]

    clock = wall_clock(lambda: run(baseline or model, LastStep()), lambda: run(model, policy), pairs=pairs)
    found = speed_up(exit_step, model.ponder.num_steps, costs=costs, needs=policy.needs)
    return {
        "steps": found.steps,
        "flops": found.flops,
        "wall_clock": clock.median,
        "wall_clock_range": [clock.low, clock.high],
        "wall_clock_batch_size": batch_size,
        "threads": torch.get_num_threads(),
    }
