"""One stage of training: the epoch is selected on held-out data, and a stage that was cut off goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, EvalPrediction, PrinterCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.glue import metrics, ranks
from benchmarks.glue.checkpoints import KeepWhole, epochs_where_it_ended, last_whole
from benchmarks.glue.config import RunConfig
from benchmarks.glue.model import Collator, answers, load_tokenizer
from benchmarks.glue.tasks import GlueTask
from ponder.integrations.transformers import PonderForSequenceClassification, PonderTrainer

__all__ = ["train_stage"]


def train_stage(
    config: RunConfig,
    task: GlueTask,
    model: PonderForSequenceClassification,
    data: Dataset,
    selected_on: Dataset,
    folder: Path,
    progress: bool,
) -> dict[str, Any]:
    """Train what `model` leaves unfrozen with the objective that it has, and load the best epoch.

    Args:
        config: The run.
        task: For the score by which the epoch is selected.
        model: Its policy decides in that score.
        data: Tokenised training examples.
        selected_on: Tokenised examples on which the epoch is selected.
        folder: Of checkpoints; a stage that was cut off goes on from the last.
        progress: Whether to show progress bars.

    Returns:
        What was measured: seconds, epochs, and the held-out score and mean exit step of each epoch.
    """
    trainer = _Trainer(
        model=model,
        args=_arguments(config, folder, len(data), progress),
        train_dataset=data,
        eval_dataset=selected_on,
        data_collator=Collator(load_tokenizer(config.backbone)),
        compute_metrics=_score(task),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=config.stop_after), KeepWhole()],
        lambda_lr=config.lambda_lr if model.recipe.own_lambda_lr else None,
    )
    if not progress:
        trainer.remove_callback(PrinterCallback)
    if ranks.is_first():
        last_whole(folder)  # the others look only once the first has cleared away what is broken
    ranks.wait()
    checkpoint = last_whole(folder)
    ended = None if checkpoint is None else epochs_where_it_ended(checkpoint)
    if ended is not None:
        trainer.args.num_train_epochs = ended  # nothing is left but to load the best epoch
    with _attention_for_training(model):
        outcome = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    history = [entry for entry in trainer.state.log_history if "eval_score" in entry]
    return {
        "objective": model.ponder.objective.to_dict(),
        "seconds": round(outcome.metrics["train_runtime"], 1),
        "epochs": len(history),
        "held_out_scores": [round(entry["eval_score"], 6) for entry in history],
        "held_out_exit_steps": [round(entry["eval_mean_exit_step"], 4) for entry in history],
    }


@contextmanager
def _attention_for_training(model: PonderForSequenceClassification) -> Iterator[None]:
    """On a CPU, attention written out: the fused kernel has no dropout there, and what it falls back to is slower."""
    before = model.encoder.config._attn_implementation
    if not torch.accelerator.is_available():
        model.encoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.encoder.set_attn_implementation(before)


class _Trainer(PonderTrainer):
    """Takes the examples of epoch e in an order that is a function of seed and e alone.

    So it is the same on one process and on several, and in a run that was cut off and goes on.
    """

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> _GroupedByLength:
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        global_batch = self.args.train_batch_size * self.args.world_size
        return _GroupedByLength(global_batch, data["length"], self.args.seed)


class _GroupedByLength(LengthGroupedSampler):
    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=list(lengths), generator=torch.Generator())
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(1_000_003 * self._seed + epoch)


def _arguments(config: RunConfig, folder: Path, examples: int, progress: bool) -> TrainingArguments:
    steps = -(-examples // config.batch_size) * config.epochs
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        learning_rate=config.lr,
        lr_scheduler_type="linear" if config.schedule == "linear" else "constant_with_warmup",
        warmup_steps=round(config.warmup * steps),
        weight_decay=0.0,
        per_device_train_batch_size=ranks.share(config.batch_size),
        per_device_eval_batch_size=64,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,  # the count of epochs without improvement
        ddp_timeout=6 * 3600,  # the others wait while the first evaluates
        seed=config.seed,
        bf16=config.bf16,
        use_cpu=not torch.accelerator.is_available(),
        report_to="none",
        disable_tqdm=not progress,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _score(task: GlueTask) -> Callable[[EvalPrediction], dict[str, float]]:
    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits, exit_step, *_ = (np.asarray(each) for each in prediction.predictions)
        scores = metrics.score(task, answers(task, logits), np.asarray(prediction.label_ids))
        return {"score": scores["score"], "mean_exit_step": float(np.mean(exit_step))}

    return compute
