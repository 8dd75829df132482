"""Fine-tuning a backbone with a recipe: stages, epochs selected on held-out data, resumable."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from benchmarks import backbones
from benchmarks.glue import metrics
from benchmarks.glue.config import RunConfig
from benchmarks.glue.tasks import GlueTask
from ponder import recipes
from ponder.errors import CheckpointError
from ponder.files import read_json, write_json
from ponder.integrations.transformers import PonderForSequenceClassification, PonderTrainer
from ponder.policies import ExitPolicy, LastStep

__all__ = ["Collator", "Trained", "answers", "build", "load_tokenizer", "start_at", "train"]


@dataclass(frozen=True)
class Trained:
    """A model after training.

    Args:
        model: The weights of the best epoch.
        stages: For each stage, what was measured: seconds, epochs, the held-out score of each epoch.
    """

    model: PonderForSequenceClassification
    stages: list[dict[str, Any]]


class Collator:
    """Pads a batch to its own longest example, and names its rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pad = DataCollatorWithPadding(tokenizer)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Tensors for `PonderForSequenceClassification.forward`."""
        batch = self._pad([{k: v for k, v in e.items() if k not in ("idx", "length")} for e in examples])
        return {**batch, "row_ids": torch.tensor([e["idx"] for e in examples])}


def load_tokenizer(backbone: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a backbone."""
    source = backbones.resolve(backbone)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"backbone: no tokenizer at {str(source)!r} ({error}). Pass one of {', '.join(backbones.names())}, a "
            "folder with a tokenizer and a safetensors encoder, or (with a network) a hub name."
        ) from error
    return tokenizer


def build(config: RunConfig, num_labels: int) -> PonderForSequenceClassification:
    """The untrained model of a run."""
    set_seed(config.seed)
    recipe = recipes.get(config.recipe, **config.recipe_options)
    return PonderForSequenceClassification.from_encoder(
        backbones.resolve(config.backbone),
        recipe,
        num_labels,
        readout=config.readout,
        policy=None if config.policy is None else ExitPolicy.from_dict(config.policy),
    )


@torch.no_grad()
def start_at(model: PonderForSequenceClassification, value: float) -> None:
    """Let every head of a new regression model answer about `value` (the mean of the training labels).

    A head that starts at 0 far from the labels sends one large common gradient through every step that is trained; it
    is answered by shifting the features of the encoder, which then never learns to tell examples apart.
    """
    for module in model.ponder.head.modules():
        if isinstance(module, torch.nn.Linear):
            module.bias.fill_(value)


def train(
    config: RunConfig, task: GlueTask, data: Dataset, held_out: Dataset, work: Path, *, progress: bool = True
) -> Trained:
    """Run all stages of the recipe.

    Args:
        config: The run.
        task: For the score by which the epoch is selected.
        data: Tokenised training examples.
        held_out: Tokenised examples of train on which the epoch is selected.
        work: Checkpoints lie here; a run that was cut off goes on from them.
        progress: Whether to show progress bars.
    """
    tokenizer = load_tokenizer(config.backbone)
    model = build(config, task.num_labels)
    if task.kind == "regression":
        start_at(model, float(np.mean(data["labels"])))
    policy, stages = model.policy, model.recipe.stages
    log: list[dict[str, Any]] = []
    for number, stage in enumerate(stages):
        folder, done = work / f"stage-{number}", work / f"stage-{number}-done"
        last = number == len(stages) - 1
        if (done / "log.json").exists():
            model = PonderForSequenceClassification.from_pretrained(done)
        else:
            model.start_stage(stage)
            model.policy = policy if last else LastStep()
            log_entry = _train_stage(config, task, model, tokenizer, data, held_out, folder, progress)
            model.policy = policy
            model.save_pretrained(done)
            write_json(done / "log.json", log_entry)
            shutil.rmtree(folder, ignore_errors=True)
        log.append(read_json(done / "log.json"))
    model.requires_grad_(True)
    model.train(False)
    return Trained(model, log)


def answers(task: GlueTask, outputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Predictions, `(examples,)`, from outputs `(examples, labels)`."""
    predicted: np.ndarray[Any, Any] = outputs[:, 0] if task.kind == "regression" else outputs.argmax(-1)
    return predicted


def _train_stage(
    config: RunConfig,
    task: GlueTask,
    model: PonderForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    data: Dataset,
    held_out: Dataset,
    folder: Path,
    progress: bool,
) -> dict[str, Any]:
    trainer = PonderTrainer(
        model=model,
        args=_arguments(config, folder, len(data), progress),
        train_dataset=data,
        eval_dataset=held_out,
        data_collator=Collator(tokenizer),
        compute_metrics=_held_out_score(task),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=config.stop_after)],
        lambda_lr=config.lambda_lr if model.recipe.own_lambda_lr else None,
    )
    checkpoint = get_last_checkpoint(str(folder)) if folder.exists() else None
    outcome = trainer.train(resume_from_checkpoint=checkpoint)
    history = [entry for entry in trainer.state.log_history if "eval_score" in entry]
    return {
        "objective": model.ponder.objective.to_dict(),
        "seconds": round(outcome.metrics["train_runtime"], 1),
        "epochs": len(history),
        "held_out_scores": [round(entry["eval_score"], 6) for entry in history],
        "held_out_exit_steps": [round(entry["eval_mean_exit_step"], 4) for entry in history],
    }


def _arguments(config: RunConfig, folder: Path, examples: int, progress: bool) -> TrainingArguments:
    steps = -(-examples // config.batch_size) * config.epochs
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        learning_rate=config.lr,
        lr_scheduler_type="linear",
        warmup_steps=round(config.warmup * steps),
        weight_decay=0.0,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=64,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        save_total_limit=1,
        seed=config.seed,
        bf16=config.bf16,
        use_cpu=not torch.accelerator.is_available(),
        report_to="none",
        disable_tqdm=not progress,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _held_out_score(task: GlueTask) -> Callable[[EvalPrediction], dict[str, float]]:
    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits, exit_step, *_ = (np.asarray(each) for each in prediction.predictions)
        scores = metrics.score(task, answers(task, logits), np.asarray(prediction.label_ids))
        return {"score": scores["score"], "mean_exit_step": float(np.mean(exit_step))}

    return compute
