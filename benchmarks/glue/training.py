"""Fine-tuning with a recipe, stage after stage; keeps the best epoch, and can be resumed.

A recipe whose first stage is plain fine-tuning (DeeBERT, the default, …) begins from the trained
model of `vanilla` with the same fields, which is trained once and stays in the folder of
checkpoints.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks import backbones, metrics
from benchmarks.environment import quick_bf16
from benchmarks.examples import Collator, load_tokenizer
from benchmarks.files import read_json, write_json
from benchmarks.glue.config import RunConfig
from benchmarks.glue.heads import train_heads
from benchmarks.glue.measuring import record
from benchmarks.tasks import Task
from ponder import PerStep, recipes
from ponder.integrations.transformers import PonderForSequenceClassification, PonderTrainer
from ponder.policies import ExitPolicy, LastStep
from ponder.recipes import Recipe

__all__ = ["build", "digest_of", "train"]

_LOG = "stages.json"


def build(config: RunConfig, num_labels: int) -> PonderForSequenceClassification:
    """Return the untrained model of a run."""
    set_seed(config.seed)
    return PonderForSequenceClassification.from_encoder(
        backbones.resolve(config.backbone),
        recipes.get(config.recipe, **config.recipe_options),
        num_labels,
        readout=config.readout,
        policy=None if config.policy is None else ExitPolicy.from_dict(dict(config.policy)),
    )


def train(
    config: RunConfig,
    task: Task,
    data: Dataset,
    selected_on: Dataset,
    work: Path,
    *,
    progress: bool = True,
) -> tuple[PonderForSequenceClassification, list[dict[str, Any]]]:
    """Run all stages of the recipe on tokenised examples.

    Args:
        config: The run.
        task: Its task.
        data: The examples to train on.
        selected_on: Others, which select the epoch.
        work: Folder of checkpoints: each run has one of its own there, named by its key and the
            data.
        progress: Whether to show a progress bar.

    Returns:
        The model with the weights of its best epochs, and the measurements of each stage.
    """
    model = build(config, task.num_labels)
    if task.kind == "regression":
        start_at(model, float(np.mean(data["labels"])))
    stages = remaining = model.ponder.stages
    log = list[dict[str, Any]]()
    folder = work / f"{config.key}-{digest_of(data)}"
    if begins_plain(model.recipe):
        plain = dataclasses.replace(config, recipe="vanilla", recipe_options={}, policy=None)
        begun, log = _vanilla(plain, task, data, selected_on, work, progress)
        begin_with(model, begun)
        remaining = stages[1:]
        if stages[1].train == "early_heads":
            log = [*log, train_heads(config, task, model, stages[1], data, selected_on)]
            remaining = stages[2:]
    if remaining:
        model.ponder.stages = remaining
        log = log + _train(config, task, model, data, selected_on, folder, progress)
    model.ponder.stages = stages
    model.requires_grad_(True)
    model.train(False)
    module: torch.nn.Module = model
    if torch.accelerator.is_available():
        module.to(torch.accelerator.current_accelerator())
    return model, log


def _vanilla(
    config: RunConfig, task: Task, data: Dataset, selected_on: Dataset, work: Path, progress: bool
) -> tuple[PonderForSequenceClassification, list[dict[str, Any]]]:
    """Return the plain model of the same fields, from the folder of checkpoints if it is there."""
    kept = work / "vanilla" / f"{config.key}-{digest_of(data)}"
    if not (kept / _LOG).exists():
        model, log = train(config, task, data, selected_on, work, progress=progress)
        model.save_pretrained(kept)
        write_json(kept / _LOG, {"stages": log})  # last: it says that the others are there
        shutil.rmtree(work / kept.name, ignore_errors=True)
        return model, log
    return PonderForSequenceClassification.from_pretrained(kept), read_json(kept / _LOG)["stages"]


def begins_plain(recipe: Recipe) -> bool:
    """Return whether the first of several stages is all of `vanilla`."""
    return len(recipe.stages) > 1 and recipe.stages[0] == recipes.get("vanilla").stages[0]


def begin_with(
    model: PonderForSequenceClassification, begun: PonderForSequenceClassification
) -> None:
    """Take over the encoder and the head, which becomes that of the last step."""
    head = model.ponder.head
    model.encoder.load_state_dict(begun.encoder.state_dict())
    (head.heads[-1] if isinstance(head, PerStep) else head).load_state_dict(
        begun.ponder.head.state_dict()
    )


@torch.no_grad()
def start_at(model: PonderForSequenceClassification, value: float) -> None:
    """Initialise every head of a regression model to answer about `value`, the mean label.

    A head that starts at 0 far from the labels sends one large common gradient through every step
    that is trained, which shifts the features of the encoder until all examples look alike.
    """
    for module in model.ponder.head.modules():
        if isinstance(module, torch.nn.Linear):
            module.bias.fill_(value)


def digest_of(data: Dataset) -> str:
    """Return a digest of tokenised examples with their labels."""
    found = hashlib.sha256()
    for column in ("input_ids", "labels"):
        for value in data[column]:
            found.update(np.asarray(value).tobytes())
    return found.hexdigest()[:12]


def _train(
    config: RunConfig,
    task: Task,
    model: PonderForSequenceClassification,
    data: Dataset,
    selected_on: Dataset,
    folder: Path,
    progress: bool,
) -> list[dict[str, Any]]:
    """Train the stages of a model, from the checkpoints in `folder` where there are some."""
    log = StageLog(folder)
    cut_off = _left_behind(folder)
    trainer = _Trainer(
        model=model,
        args=_arguments(config, folder, len(data), progress),
        train_dataset=data,
        eval_dataset=selected_on,
        data_collator=Collator(load_tokenizer(config.backbone)),
        compute_metrics=_score(task, model, selected_on),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=config.stop_after), log],
        lambda_lr=config.lambda_lr if model.recipe.own_lambda_lr else None,
        head_lr=config.head_lr,
    )
    if not progress:
        trainer.remove_callback(PrinterCallback)
    log.objectives = lambda: model.ponder.objective.to_dict()
    attention = model.encoder.config._attn_implementation
    if (
        not torch.accelerator.is_available()
    ):  # the fused kernel of a CPU has no dropout, and falls back to slower ones
        model.encoder.set_attn_implementation("eager")
    try:
        trainer.train(resume_from_checkpoint=cut_off)
    finally:
        model.encoder.set_attn_implementation(attention)
    return list(log.stages.values())


class _Trainer(PonderTrainer):
    """Batches of similar length, in an order that is a function of seed and epoch alone."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        return _GroupedByLength(self.args.train_batch_size, data["length"], self.args.seed)


class _GroupedByLength(LengthGroupedSampler):
    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=list(lengths), generator=torch.Generator())
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(1_000_003 * self._seed + epoch)


def _arguments(config: RunConfig, folder: Path, examples: int, progress: bool) -> TrainingArguments:
    steps = -(-examples // config.batch_size) * config.epochs
    on_accelerator = torch.accelerator.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        learning_rate=config.lr,
        lr_scheduler_type="linear" if config.schedule == "linear" else "constant_with_warmup",
        warmup_steps=round(config.warmup * steps),
        weight_decay=0.0,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=64,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        logging_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,  # the count of epochs without improvement
        seed=config.seed,
        bf16=config.bf16 and (on_accelerator or quick_bf16()),
        use_cpu=not on_accelerator,
        report_to="none",
        disable_tqdm=not progress,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _score(
    task: Task, model: PonderForSequenceClassification, data: Dataset
) -> Callable[[EvalPrediction], dict[str, float]]:
    """The score at the exits; with a head at each step, the mean score of all steps.

    There a threshold lets rows exit the earlier the surer the heads become, so that the score at
    the exits would compare thresholds, and not weights.
    """

    def score(outputs: Any, labels: Any) -> float:
        return metrics.score(task, metrics.answers(task, outputs), labels)["score"]

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        labels = np.asarray(prediction.label_ids)
        if not isinstance(model.ponder.head, PerStep) or isinstance(model.policy, LastStep):
            return {"score": score(np.asarray(prediction.predictions), labels)}
        # The rows of a record are in the order of the data; those of a prediction are grouped by length.
        labels = np.asarray(data["labels"])
        steps = record(model, data).outputs.float().numpy().swapaxes(0, 1)
        return {"score": float(np.mean([score(outputs, labels) for outputs in steps]))}

    return compute


def _left_behind(folder: Path) -> bool:
    """Whether an interrupted run can be resumed; an incomplete checkpoint is removed."""
    for path in folder.rglob("checkpoint-*"):
        if not (path / "trainer_state.json").exists():  # which is written last
            shutil.rmtree(path)
    return any(folder.glob("checkpoint-*")) or any(folder.glob("stage-*"))


class StageLog(TrainerCallback):
    """A log of the objective, seconds, epochs and held-out scores of every stage."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / _LOG
        self.stages: dict[str, Any] = read_json(self.path) if self.path.exists() else {}
        self.objectives: Callable[[], dict[str, Any]] = dict

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Begin a stage."""
        self._began = time.perf_counter()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Note a stage."""
        history = [entry for entry in state.log_history if "eval_score" in entry]
        self.stages[Path(args.output_dir or "").name] = {
            "objective": self.objectives(),
            "seconds": round(time.perf_counter() - self._began, 1),
            "epochs": len(history),
            "held_out_scores": [round(each["eval_score"], 6) for each in history],
            "held_out_exit_steps": [round(each["eval_exit_step"], 4) for each in history],
        }
        write_json(self.path, self.stages)
