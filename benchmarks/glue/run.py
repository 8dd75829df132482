"""One run: data, training, measurements, one JSON file."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from benchmarks import tasks
from benchmarks.environment import environment
from benchmarks.examples import Collator, hold_out, load_tokenizer, tokenize
from benchmarks.glue.config import RunConfig
from benchmarks.glue.measuring import costs_of, mean_cost, record, speed_ups, summarise
from benchmarks.glue.results import FORMAT, Result
from benchmarks.glue.training import digest_of, train
from benchmarks.tasks import Task
from ponder import PerStep, Trajectory, recipes
from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.policies import LastStep

__all__ = ["evaluate", "prepare", "run"]


def run(
    config: RunConfig,
    folder: Path | None,
    out: Path,
    work: Path,
    *,
    keep: Path | None = None,
    progress: bool = True,
) -> Result:
    """Train and measure one configuration, and write `<out>/<key>.json`.

    A run whose result is there already is read and not repeated; one that was cut off goes on from
    its checkpoint.

    Args:
        config: The run.
        folder: The folder of its task's data; None for the hub, where the task has one.
        out: Folder of results.
        work: Folder of checkpoints; this run's are removed once its result is written.
        keep: Folder in which the model, `<keep>/<key>/`, and its trajectories,
            `<keep>/<key>-<split>.safetensors`, are kept.
        progress: Whether to show progress bars.
    """
    task = tasks.get(config.task)
    config = dataclasses.replace(
        config, task=task.name
    )  # as results are named, however it is spelt
    recipes.get(
        config.recipe, **config.recipe_options
    )  # an unknown one is named before any data are read
    path = out / f"{config.key}.json"
    if path.exists() and (keep is None or (keep / config.key).exists()):
        return Result.read(path)
    ready = prepare(config, task.load(folder, ["train", *task.dev_splits]))
    data = ready.pop("train")
    model, stages = train(config, task, data, ready["held_out"], work, progress=progress)
    result, recorded = evaluate(config, task, model, stages, ready)
    if keep is not None:  # before the result, so that no result stands without its model
        for split, trajectory in recorded.items():
            trajectory.save(keep / f"{config.key}-{split}.safetensors")
        model.save_pretrained(keep / config.key)
        load_tokenizer(config.backbone).save_pretrained(keep / config.key)
    result.save(path)
    shutil.rmtree(work / f"{config.key}-{digest_of(data)}", ignore_errors=True)
    return Result.read(path)


def prepare(config: RunConfig, splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Tokenise `train`, without its held-out part; the splits to report; and `held_out`."""
    tokenizer = load_tokenizer(config.backbone)
    examples = splits["train"]
    if config.max_train is not None and config.max_train < len(examples):
        examples = examples.shuffle(seed=config.seed).select(range(config.max_train))
    parts = dict(splits)
    parts["train"], parts["held_out"] = hold_out(examples, config.held_out, config.seed)
    return {name: tokenize(split, tokenizer, config.max_length) for name, split in parts.items()}


def evaluate(
    config: RunConfig,
    task: Task,
    model: PonderForSequenceClassification,
    stages: list[dict[str, Any]],
    ready: Mapping[str, Dataset],
) -> tuple[Result, dict[str, Trajectory]]:
    """Return the contents of the result, and the trajectory of each split."""
    recorded = {name: record(model, split) for name, split in ready.items()}
    reported = [name for name in ready if name != "held_out"]
    costs = [each for name in reported for each in costs_of(model, ready[name])]
    exit_step = torch.cat([recorded[name].replay(model.policy).exit_step for name in reported])
    mean = mean_cost(costs)
    collate = Collator(load_tokenizer(config.backbone))
    num_steps = model.ponder.num_steps
    recipe = (
        recipes.get(config.recipe, **config.recipe_options).for_steps(num_steps).for_task(task.kind)
    )
    splits = {name: summarise(task, each, model.policy, mean) for name, each in recorded.items()}
    if model.ponder.steps.shared and not isinstance(
        model.ponder.head, PerStep
    ):  # twice the steps that were trained
        for name, split in splits.items():
            beyond = record(model, ready[name], num_steps=2 * num_steps)
            split["beyond"] = summarise(task, beyond, LastStep())["per_step"][num_steps:]
    data = {
        "format": FORMAT,
        "task": task.name,
        "recipe": config.recipe,
        "backbone": config.backbone,
        "num_steps": num_steps,
        "recipe_fields": recipe.to_dict(),
        "policy": model.policy.to_dict(),
        "splits": splits,
        "speed_up": speed_ups(model, ready[reported[0]], collate, exit_step, costs),
        "training": stages,
        "weights": model.ponder.weights_digest(),
        "config": config.to_dict(),
        "environment": environment(model.device),
    }
    return Result(data), recorded
