"""One run: data, training, evaluation, one JSON file."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open

from benchmarks import tasks
from benchmarks.command_line import check_writable
from benchmarks.environment import environment
from benchmarks.examples import Collator, hold_out, load_tokenizer, tokenize
from benchmarks.glue import distributed
from benchmarks.glue.config import RunConfig
from benchmarks.glue.evaluation import mean_cost, measure_costs, measure_speed_ups, record, summarise
from benchmarks.glue.model import keep, weights_kept
from benchmarks.glue.results import FORMAT, Result, recipe_of
from benchmarks.glue.training import Trained, train
from benchmarks.locking import BusyError, hold
from benchmarks.tasks import Task
from ponder import Trajectory, recipes
from ponder.integrations.transformers import PonderForSequenceClassification

__all__ = ["evaluate", "prepare", "run"]


def run(
    config: RunConfig,
    folder: Path | None,
    out: Path,
    work: Path,
    *,
    trajectories: Path | None = None,
    models: Path | None = None,
    wait: bool = True,
    progress: bool = True,
) -> Result:
    """Train and evaluate one configuration, and write `<out>/<key>.json`.

    A run whose result is there already, with all else that is asked for, is read and not repeated; one that was cut off
    goes on from its checkpoint. Under `torchrun` all processes train on each batch, and the first writes.

    Args:
        config: The run.
        folder: The folder of its task's data; None for the hub, where the task has one.
        out: Folder of results.
        work: Folder of checkpoints, emptied of this run's once its result is written.
        trajectories: Folder for the full-depth trajectory of each split, `<key>-<split>.safetensors`.
        models: Folder in which the trained model is kept, `<models>/<key>/`, and of the model of `vanilla` from which a
            recipe of two stages goes on.
        wait: Whether to wait for the result where another process is at this run, or to raise.
        progress: Whether to show progress bars.
    """
    config = dataclasses.replace(config, task=tasks.get(config.task).name)  # as results are named, however it is spelt
    recipes.get(config.recipe, **config.recipe_options)  # an unknown one is named before any data are read
    places = {"--out": out, "--work": work, "--trajectories": trajectories, "--keep-model": models}
    for option, place in places.items():
        check_writable(place, option)
    path, own, task = out / f"{config.key}.json", work / config.key, tasks.get(config.task)

    def make() -> None:
        ready = prepare(config, task.load(folder, ["train", *task.dev_splits]))
        selected_on = ready["held_out"] if "held_out" in ready else ready[task.dev_splits[0]]
        trained = train(config, task, ready.pop("train"), selected_on, own, models=models, progress=progress)
        if distributed.is_first():
            result, recorded = evaluate(config, task, trained, ready)
            if trajectories is not None:
                for split, trajectory in recorded.items():
                    trajectory.save(trajectories / f"{config.key}-{split}.safetensors")
            if models is not None:  # before the result, so that no result stands without its model
                keep(trained.model, config, models, trained.stages, trained.origin)
            result.save(path)
        distributed.wait()

    def is_done() -> bool:
        splits = [*task.dev_splits, *(["held_out"] if config.selection == "held_out" else [])]
        asked = [] if models is None else [models / config.key]
        if trajectories is not None:
            asked += [trajectories / f"{config.key}-{split}.safetensors" for split in splits]
        if not all(each.exists() for each in (path, *asked)):
            return False
        try:
            found = {Result.of_run(path).data.get("weights"), *map(_weights_of, asked)}
        except SafetensorError:
            return False  # a half-written trajectory is made again, as a missing one
        return len(found - {None}) <= 1  # or the result is of another training than what lies beside it

    if not is_done() and not distributed.is_first():
        make()
    elif not is_done():
        # Of several processes that train together, the others do not wait here: they would wait for this one forever.
        with hold(work / f"{config.key}.lock", wait=wait and distributed.count() == 1):
            for part in out.glob(f".{path.name}.*"):  # what a killed writer left; nobody else writes this result now
                shutil.rmtree(part, ignore_errors=True)
            if is_done() and distributed.count() > 1:
                raise BusyError(f"{path}: another process has just written it. Start again to read it.")
            if not is_done():
                make()
            shutil.rmtree(own, ignore_errors=True)
    return Result.of_run(path)


def _weights_of(kept: Path) -> str | None:
    """Digest of the weights of a kept model, or of those that gave a trajectory; None where neither says it."""
    if kept.is_dir():
        return weights_kept(kept)
    with safe_open(kept, "pt") as file:
        return (file.metadata() or {}).get("weights")


def prepare(config: RunConfig, splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Tokenised: `train`, without what is held out of it; the splits to report; `held_out`, where it is selected on."""
    tokenizer = load_tokenizer(config.backbone)
    examples = splits["train"]
    if config.max_train is not None and config.max_train < len(examples):
        examples = examples.shuffle(seed=config.seed).select(range(config.max_train))
    parts = {**splits, "train": examples}
    if config.selection == "held_out":
        parts["train"], parts["held_out"] = hold_out(examples, config.held_out, config.seed)
    return {name: tokenize(split, tokenizer, config.max_length) for name, split in parts.items()}


def evaluate(
    config: RunConfig,
    task: Task,
    trained: Trained,
    ready: Mapping[str, Dataset],
    baseline: PonderForSequenceClassification | None = None,
) -> tuple[Result, dict[str, Trajectory]]:
    """What is written down, and the trajectory of each split; wall-clock is against the full depth of `baseline`."""
    collate = Collator(load_tokenizer(config.backbone))
    recorded = {name: record(trained.model, split) for name, split in ready.items()}
    model = trained.model
    reported = [name for name in ready if name != "held_out"]
    costs = [cost for name in reported for cost in measure_costs(model, ready[name], collate)]
    exit_step = torch.cat([recorded[name].replay(model.policy).exit_step for name in reported])
    cost = mean_cost(costs)
    measured = {name: summarise(task, each, model.policy, cost) for name, each in recorded.items()}
    timed = ready[reported[0]]
    data = {
        "format": FORMAT,
        "task": task.name,
        "recipe": config.recipe,
        "backbone": config.backbone,
        "selection": config.selection,
        "num_steps": model.ponder.num_steps,
        "recipe_fields": recipe_of(config, task.kind, model.ponder.num_steps).to_dict(),
        "policy": model.policy.to_dict(),
        "splits": measured,
        "speed_up": measure_speed_ups(model, timed, collate, model.policy, exit_step, costs, baseline=baseline),
        "training": trained.stages,
        "weights": model.ponder.weights_digest(),
        "config": config.to_dict(),
        "environment": environment(model.device),
    }
    return Result(data), recorded
