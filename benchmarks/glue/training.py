"""Fine-tuning a backbone with a recipe, stage after stage."""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from benchmarks.glue import ranks
from benchmarks.glue.config import RunConfig
from benchmarks.glue.locks import hold
from benchmarks.glue.model import build, start_at
from benchmarks.glue.stage import train_stage
from benchmarks.glue.tasks import GlueTask
from ponder import PerStep, recipes
from ponder._utils.files import read_json, write_json
from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.policies import LastStep
from ponder.recipes import Recipe

__all__ = ["Trained", "begins_plain", "plain", "train"]


@dataclass(frozen=True)
class Trained:
    """A model after training.

    Args:
        model: The weights of the best epoch.
        stages: For each stage, what was measured: seconds, epochs, the held-out score of each epoch.
    """

    model: PonderForSequenceClassification
    stages: list[dict[str, Any]]


def train(
    config: RunConfig,
    task: GlueTask,
    data: Dataset,
    selected_on: Dataset,
    work: Path,
    *,
    stages: Path | None = None,
    progress: bool = True,
) -> Trained:
    """Run all stages of the recipe.

    Args:
        config: The run.
        task: For the score by which the epoch is selected.
        data: Tokenised training examples.
        selected_on: Tokenised examples on which the epoch is selected.
        work: Checkpoints lie here; a run that was cut off goes on from them.
        stages: Folder in which runs of `vanilla` train; recipes whose first stage that is (DeeBERT, FastBERT) go on
            from there. Each trains its own first stage where None.
        progress: Whether to show progress bars.
    """
    model = build(config, task.num_labels)
    if task.kind == "regression":
        start_at(model, float(np.mean(data["labels"])))
    log: list[dict[str, Any]] = []
    if begins_plain(model.recipe):
        begun = train(plain(config), task, data, selected_on, work / "vanilla", stages=stages, progress=progress)
        _begin_with(model, begun.model)
        log += begun.stages
    run_stage = _StageRunner(config, task, data, selected_on, progress)
    for number in range(len(log), len(model.recipe.stages)):
        shared = None if stages is None else _shared(stages, config, model.recipe)
        if shared is None:
            log.append(run_stage(model, number, work))
        else:
            with hold(shared.with_name(f"{shared.name}.lock"), wait=True) if ranks.is_first() else nullcontext():
                log.append(run_stage(model, number, shared))
    model.requires_grad_(True)
    model.train(False)
    return Trained(model, log)


def begins_plain(recipe: Recipe) -> bool:
    """Whether the first of several stages is all that `vanilla` does."""
    first = recipes.get("vanilla").stages
    return len(recipe.stages) > len(first) and recipe.stages[: len(first)] == first


def plain(config: RunConfig) -> RunConfig:
    """The run of `vanilla` with the same training; what decides nothing there is at its default."""
    nothing = {name: getattr(RunConfig, name) for name in ("policy", "knob", "knob_keeps", "budget", "lambda_lr")}
    return dataclasses.replace(config, recipe="vanilla", recipe_options={}, **nothing)


def _shared(stages: Path, config: RunConfig, recipe: Recipe) -> Path | None:
    """Where a run of `vanilla` trains, so that others may go on from there; None for other runs."""
    is_plain = recipe.stages == recipes.get("vanilla").stages and config.policy is None
    return stages / plain(config).key if is_plain else None


def _begin_with(model: PonderForSequenceClassification, begun: PonderForSequenceClassification) -> None:
    """Take over the encoder and the head, which becomes that of the last step where there is one a step."""
    head = model.ponder.head
    model.encoder.load_state_dict(begun.encoder.state_dict())
    (head.heads[-1] if isinstance(head, PerStep) else head).load_state_dict(begun.ponder.head.state_dict())


@dataclass(frozen=True)
class _StageRunner:
    """Trains one stage, or reads what was trained already; arguments as for `train`."""

    config: RunConfig
    task: GlueTask
    data: Dataset
    selected_on: Dataset
    progress: bool

    def __call__(self, model: PonderForSequenceClassification, number: int, work: Path) -> dict[str, Any]:
        """Bring `model` to the end of stage `number`; returns what was measured."""
        policy, stages = model.policy, model.recipe.stages
        folder, done = work / f"stage-{number}", work / f"stage-{number}-done"
        if (done / "log.json").exists():
            trained = PonderForSequenceClassification.from_pretrained(done)
            model.load_state_dict(trained.state_dict())
        else:
            model.start_stage(stages[number])
            model.policy = policy if number == len(stages) - 1 else LastStep()
            entry = train_stage(self.config, self.task, model, self.data, self.selected_on, folder, self.progress)
            model.policy = policy
            if ranks.is_first():
                model.save_pretrained(done)
                write_json(done / "log.json", entry)  # last: it says that the others are there
                shutil.rmtree(folder, ignore_errors=True)
            ranks.wait()
        return read_json(done / "log.json")
