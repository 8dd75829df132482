"""Fine-tuning a backbone with a recipe: stages, epochs selected on held-out data, resumable."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
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
    PrinterCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks import backbones
from benchmarks.glue import metrics, ranks
from benchmarks.glue.checkpoints import KeepWhole, epochs_where_it_ended, last_whole
from benchmarks.glue.config import RunConfig, digest
from benchmarks.glue.locks import hold
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
        stages: Folder of first stages that runs share; each run trains its own where None.
        progress: Whether to show progress bars.
    """
    model = build(config, task.num_labels)
    if task.kind == "regression":
        start_at(model, float(np.mean(data["labels"])))
    number_of_stages = len(model.recipe.stages)
    stage_runner = _StageRunner(config, task, data, selected_on, progress)
    log: list[dict[str, Any]] = []
    for number in range(number_of_stages):
        last = number == number_of_stages - 1
        shared = None if stages is None or last else stages / _shared_name(config, model, number)
        if shared is None:
            log.append(stage_runner(model, number, work))
        else:
            with hold(shared.with_suffix(".lock"), wait=True) if ranks.is_first() else nullcontext():
                log.append(stage_runner(model, number, shared))
    model.requires_grad_(True)
    model.train(False)
    return Trained(model, log)


def _shared_name(config: RunConfig, model: PonderForSequenceClassification, number: int) -> str:
    """The same for two runs whose first stages, up to `number`, are the same: same model, data, losses and seed."""
    fields, recipe = config.to_dict(), model.recipe.to_dict()
    for of_the_end in ("recipe", "recipe_options", "policy", "knob", "knob_keeps"):
        del fields[of_the_end]
    heads = {name: recipe[name] for name in ("lambda_head", "prior", "per_step_heads", "own_lambda_lr")}
    return f"{config.task}-{digest({**fields, **heads, 'stages': recipe['stages'][: number + 1]})}".lower()


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
            entry = _train_stage(self.config, self.task, model, self.data, self.selected_on, folder, self.progress)
            model.policy = policy
            if ranks.is_first():
                model.save_pretrained(done)
                write_json(done / "log.json", entry)  # last: it says that the others are there
                shutil.rmtree(folder, ignore_errors=True)
            ranks.wait()
        return read_json(done / "log.json")


def answers(task: GlueTask, outputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Predictions, `(examples,)`, from outputs `(examples, labels)`."""
    predicted: np.ndarray[Any, Any] = outputs[:, 0] if task.kind == "regression" else outputs.argmax(-1)
    return predicted


def _train_stage(
    config: RunConfig,
    task: GlueTask,
    model: PonderForSequenceClassification,
    data: Dataset,
    selected_on: Dataset,
    folder: Path,
    progress: bool,
) -> dict[str, Any]:
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
    outcome = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    history = [entry for entry in trainer.state.log_history if "eval_score" in entry]
    return {
        "objective": model.ponder.objective.to_dict(),
        "seconds": round(outcome.metrics["train_runtime"], 1),
        "epochs": len(history),
        "held_out_scores": [round(entry["eval_score"], 6) for entry in history],
        "held_out_exit_steps": [round(entry["eval_mean_exit_step"], 4) for entry in history],
    }


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
