"""One run: data, training, evaluation, one JSON file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from benchmarks.glue import data as glue_data
from benchmarks.glue.config import RunConfig
from benchmarks.glue.evaluation import measure_speed_ups, record, summarise
from benchmarks.glue.results import FORMAT, Result, environment
from benchmarks.glue.tasks import GlueTask, get
from benchmarks.glue.training import Collator, Trained, load_tokenizer, train
from ponder import Trajectory
from ponder.errors import ArgumentError
from ponder.files import read_json
from ponder.integrations.transformers import PonderForSequenceClassification

__all__ = ["check_writable", "run", "run_on"]


def run(
    config: RunConfig,
    glue_dir: Path | None,
    out: Path,
    work: Path,
    *,
    trajectories: Path | None = None,
    progress: bool = True,
) -> Result:
    """Train and evaluate one configuration on a GLUE task, and write `<out>/<key>.json`.

    A run whose result is there already is read, not repeated; one that was cut off goes on from its checkpoint.

    Args:
        config: The run.
        glue_dir: The folder in GLUE's layout; None for the hub.
        out: Folder of results.
        work: Folder of checkpoints, emptied of this run's once its result is written.
        trajectories: Folder for the full-depth trajectory of each split, `<key>-<split>.safetensors`; none where None.
        progress: Whether to show progress bars.
    """
    check_writable(out)
    if trajectories is not None:
        check_writable(trajectories)
    path = out / f"{config.key}.json"
    if path.exists():
        return Result(read_json(path), path)
    task = get(config.task)
    splits = glue_data.load(task, glue_dir)
    labelled = {name: splits[name] for name in ("train", *task.dev_splits)}
    result, _ = run_on(config, task, labelled, work / config.key, trajectories=trajectories, progress=progress)
    result.save(path)
    shutil.rmtree(work / config.key, ignore_errors=True)
    return Result(result.data, path)


def run_on(
    config: RunConfig,
    task: GlueTask,
    splits: Mapping[str, Dataset],
    work: Path,
    *,
    baseline: PonderForSequenceClassification | None = None,
    trajectories: Path | None = None,
    progress: bool = True,
) -> tuple[Result, Trained]:
    """Train and evaluate on given data.

    Args:
        config: The run.
        task: What the labels mean.
        splits: `train`, and the splits to report.
        work: Folder of checkpoints.
        baseline: The model against which speed is measured; this one run to its last step where None.
        trajectories: As for `run`.
        progress: Whether to show progress bars.
    """
    tokenizer = load_tokenizer(config.backbone)
    examples = splits["train"]
    if config.max_train is not None and config.max_train < len(examples):
        examples = examples.shuffle(seed=config.seed).select(range(config.max_train))
    kept, held = glue_data.hold_out(examples, config.held_out, config.seed)
    ready = {
        name: glue_data.tokenize(split, tokenizer, config.max_length)
        for name, split in {**splits, "train": kept, "held_out": held}.items()
    }
    trained = train(config, task, ready.pop("train"), ready["held_out"], work, progress=progress)
    recorded = {name: record(trained.model, split, Collator(tokenizer)) for name, split in ready.items()}
    if trajectories is not None:
        for name, trajectory in recorded.items():
            trajectory.save(trajectories / f"{config.key}-{name}.safetensors")
    return Result(_measure(config, task, trained, ready, recorded, Collator(tokenizer), baseline)), trained


def _measure(
    config: RunConfig,
    task: GlueTask,
    trained: Trained,
    ready: dict[str, Dataset],
    recorded: dict[str, Trajectory],
    collate: Collator,
    baseline: PonderForSequenceClassification | None,
) -> dict[str, Any]:
    model = trained.model
    measured = {name: summarise(task, trajectory, model.policy) for name, trajectory in recorded.items()}
    reported = next(name for name in ready if name != "held_out")
    mean_step = measured[reported]["mean_exit_step"]
    return {
        "format": FORMAT,
        "task": task.name,
        "recipe": config.recipe,
        "backbone": config.backbone,
        "num_steps": model.ponder.num_steps,
        "policy": model.policy.to_dict(),
        "splits": measured,
        "speed_up": measure_speed_ups(model, ready[reported], collate, model.policy, mean_step, baseline=baseline),
        "training": trained.stages,
        "config": config.to_dict(),
        "environment": environment(model.device),
    }


def check_writable(folder: Path) -> None:
    """Refuse, before anything is trained, a folder that results cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ArgumentError(
            "--out",
            expected="a folder that can be written",
            got=f"{folder} ({error.strerror})",
            remedy="Choose another.",
        ) from error
