"""Early heads trained on recorded features of a frozen encoder, as if trained through it."""

from __future__ import annotations

import copy
import time
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import get_scheduler

from benchmarks import metrics
from benchmarks.glue.config import RunConfig
from benchmarks.glue.measuring import record
from benchmarks.tasks import Task
from ponder import Trajectory
from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.objectives import Unrolled
from ponder.recipes import Stage
from ponder.training import parameter_groups, run_stage

__all__ = ["train_heads"]


def train_heads(
    config: RunConfig,
    task: Task,
    model: PonderForSequenceClassification,
    stage: Stage,
    data: Dataset,
    selected_on: Dataset,
) -> dict[str, Any]:
    """Train a stage of early heads, keep its best epoch by the mean score of all steps.

    A frozen encoder trains in evaluation mode, so that its features are those of every epoch.
    """
    began = time.perf_counter()
    wrapper = model.ponder.eval()
    taught, selecting = (record(model, rows, features=True) for rows in (data, selected_on))
    steps = config.epochs * -(-len(data) // config.batch_size)
    name = "linear" if config.schedule == "linear" else "constant_with_warmup"
    scores = list[float]()
    kept = wrapper.head.state_dict()
    with run_stage(wrapper, stage):
        optimizer = torch.optim.AdamW(
            parameter_groups(wrapper, config.lr, None, config.head_lr), weight_decay=0.0
        )
        rates = get_scheduler(name, optimizer, round(config.warmup * steps), steps)
        while (
            len(scores) < config.epochs
            and len(scores) - int(np.argmax(scores or [0])) <= config.stop_after
        ):
            wrapper.train()
            order = torch.Generator().manual_seed(1_000_003 * config.seed + len(scores))
            for rows in torch.randperm(len(data), generator=order).split(config.batch_size):
                optimizer.zero_grad()
                _loss(model, stage, taught, rows).backward()
                torch.nn.utils.clip_grad_norm_(wrapper.head.parameters(), 1.0)
                optimizer.step()
                rates.step()
            scores.append(_score(task, model, selecting))
            if scores[-1] > max(scores[:-1], default=-np.inf):
                kept = copy.deepcopy(wrapper.head.state_dict())
    wrapper.head.load_state_dict(kept)
    found = {
        "objective": stage.objective.to_dict(),
        "seconds": round(time.perf_counter() - began, 1),
    }
    return {
        **found,
        "epochs": len(scores),
        "held_out_scores": [round(score, 6) for score in scores],
    }


@torch.no_grad()
def _score(task: Task, model: PonderForSequenceClassification, run: Trajectory) -> float:
    model.ponder.eval()
    assert run.labels is not None
    answers = _outputs(model, run, torch.arange(len(run))).float().numpy().swapaxes(0, 1)
    labels = run.labels.numpy()
    return float(
        np.mean([metrics.score(task, metrics.answers(task, of), labels)["score"] for of in answers])
    )


def _outputs(model: PonderForSequenceClassification, run: Trajectory, rows: Tensor) -> Tensor:
    assert run.features is not None
    features = run.features[rows].float()
    heads = cast(Any, model.ponder.head).heads
    return torch.stack([head(features[:, step]) for step, head in enumerate(heads)], dim=1)


def _loss(
    model: PonderForSequenceClassification, stage: Stage, run: Trajectory, rows: Tensor
) -> Tensor:
    assert run.labels is not None
    outputs = _outputs(model, run, rows)
    labels = run.labels[rows]
    task = run.meaning
    unrolled = Unrolled(outputs, task.step_losses(outputs, labels), task, labels=labels)
    return task.mean_loss(stage.objective.per_example(unrolled), labels)
