"""Fine-tuning with a recipe, stage after stage; the epoch is selected on held-out data, and what was cut off goes on.

`Trainer` writes a checkpoint file by file, and removes older ones file by file, so after a kill a folder may be there
in part. Here a folder counts only while it holds a mark, which is written last and removed first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks import metrics
from benchmarks.bf16 import quick_products
from benchmarks.examples import Collator, load_tokenizer
from benchmarks.glue import distributed
from benchmarks.glue.config import RunConfig
from benchmarks.glue.evaluation import record
from benchmarks.glue.model import KeptModel, Origin, build, load_kept, start_at, to_accelerator
from benchmarks.glue.results import recipe_of
from benchmarks.tasks import Task
from ponder import PerStep, PonderWrapper, recipes
from ponder._utils.files import read_json, write_json
from ponder._utils.weights import digest_of_weights
from ponder.errors import ArgumentError
from ponder.integrations.transformers import PonderForSequenceClassification, PonderTrainer
from ponder.objectives import FinalStep, Ponder
from ponder.policies import ExitPolicy, LastStep
from ponder.recipes import Recipe, Stage

__all__ = [
    "KeepWhole",
    "Trained",
    "differs",
    "digest_of",
    "last_whole",
    "plain",
    "seconds_until",
    "train",
    "train_stage",
]

_MARK = "complete"


@dataclass(frozen=True)
class Trained:
    """A model with the weights of its best epochs, and what was measured in each stage."""

    model: PonderForSequenceClassification
    stages: list[dict[str, Any]]
    origin: Origin


def train(
    config: RunConfig,
    task: Task,
    data: Dataset,
    selected_on: Dataset,
    work: Path,
    *,
    models: Path | None = None,
    progress: bool = True,
) -> Trained:
    """Run all stages of the recipe on tokenised examples; the epoch is selected on others.

    Checkpoints lie in `work`, and a run that was cut off goes on from them; one whose model is among the kept `models`
    is trained already. Where the model of `vanilla` is among the
    kept `models`, a recipe whose first stage that is (DeeBERT, FastBERT, `ponder`) goes on from it, and does not train
    its own.
    """
    model = build(config, task.num_labels)
    origin = Origin(digest_of(data), digest_of(selected_on), digest_of_weights([model.encoder]) or "")
    before = _finished(config, task, models, origin)
    if before is not None:
        return before
    _check_work(work, {**dataclasses.asdict(origin), **_trains(model.recipe)})
    if task.kind == "regression":
        start_at(model, float(np.mean(data["labels"])))
    policy, recipe_stages, log = model.policy, model.recipe.stages, list[dict[str, Any]]()
    if begins_plain(model.recipe):
        is_own = (work / "vanilla" / "stage-0-done" / "log.json").exists()  # and the kept one may have come since
        begun = None if is_own else _finished(plain(config), task, models, origin)
        begun = begun or train(plain(config), task, data, selected_on, work / "vanilla", progress=progress)
        _check_work(work, {"weights": digest_of_weights([begun.model.ponder])}, "begun-from.json")
        _begin_with(model, begun.model)
        log += begun.stages
    for number in range(len(log), len(recipe_stages)):
        folder, done = work / f"stage-{number}", work / f"stage-{number}-done"
        if (done / "log.json").exists():
            model.load_state_dict(PonderForSequenceClassification.from_pretrained(done).state_dict())
        else:
            model.start_stage(recipe_stages[number])
            model.policy = policy if number == len(recipe_stages) - 1 else LastStep()
            entry = train_stage(config, task, model, data, selected_on, folder, progress)
            model.finish_stage(recipe_stages[number])
            model.policy = policy
            if distributed.is_first():
                model.save_pretrained(done)
                write_json(done / "log.json", entry)  # last: it says that the others are there
                shutil.rmtree(folder, ignore_errors=True)
            distributed.wait()
        log.append(read_json(done / "log.json"))
    model.requires_grad_(True)
    model.train(False)
    to_accelerator(model)  # where its stages were finished before, no trainer has
    return Trained(model, log, origin)


def begins_plain(recipe: Recipe) -> bool:
    """Whether the first of several stages is all that `vanilla` does."""
    first = recipes.get("vanilla").stages
    return len(recipe.stages) > len(first) and recipe.stages[: len(first)] == first


def plain(config: RunConfig) -> RunConfig:
    """The run of `vanilla` with the same fields."""
    return dataclasses.replace(config, recipe="vanilla", recipe_options={}, policy=None)


def digest_of(data: Dataset) -> str:
    """What tokenised examples are, with their labels."""
    found = hashlib.sha256()
    for column in ("input_ids", "labels"):
        for value in data[column]:
            found.update(np.asarray(value).tobytes())
    return found.hexdigest()[:16]


def _trains(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides what a run ends with: its weights, and how rows leave; what it is called does not."""
    plain = recipe.to_dict()
    of_weights = ("stages", "lambda_head", "prior", "per_step_heads", "early_gradient", "own_lambda_lr")
    return {name: plain[name] for name in (*of_weights, "policy")}


def _check_work(work: Path, made_by: Mapping[str, Any], name: str = "made-by.json") -> None:
    """Refuse checkpoints of other data, or of the recipe as it was, and note what those to come are of."""
    note, plain = work / name, json.loads(json.dumps(made_by))
    noted = read_json(note) if note.exists() else plain
    if noted != {name: plain.get(name) for name in noted}:  # an earlier version noted less
        raise ArgumentError(
            "--work",
            expected="checkpoints of this run",
            got=f"{work}, begun on other data, from other weights or by another version of the recipe",
            remedy="Pass another --work, or remove that folder.",
        )
    if distributed.is_first() and not note.exists():
        work.mkdir(parents=True, exist_ok=True)
        write_json(note, plain)


def _finished(config: RunConfig, task: Task, models: Path | None, origin: Origin) -> Trained | None:
    """The kept model of a run, with what was measured; None where it was not kept.

    Raises:
        ArgumentError: It is that of another run, or was trained or selected on other data, from other weights, or by
            the recipe as it was.
    """
    if models is None or not (models / config.key).exists():
        return None
    kept = load_kept(models / config.key)
    if not kept.training:
        return None
    got = differs(kept, config, task, origin)
    if got:
        raise ArgumentError(
            "--keep-model",
            expected=f"in {models / config.key} the model of this run",
            got=got,
            remedy="Move it away, or pass another folder.",
        )
    return Trained(kept.model, kept.training, kept.origin)


def differs(kept: KeptModel, config: RunConfig, task: Task, origin: Origin) -> str:
    """In what a kept model is not what a run would train now; empty if in nothing.

    Args:
        kept: The model.
        config: The run.
        task: Its task.
        origin: Its data, and the weights that it begins from. What is empty, here or in a model that an earlier
            version kept, is not compared.
    """
    if kept.config.key != config.key:
        return f"that of another run, {kept.config.key}"
    now = recipe_of(config, task.kind, kept.model.ponder.num_steps)
    if config.policy is not None:
        now = dataclasses.replace(now, policy=ExitPolicy.from_dict(config.policy))
    if _trains(kept.model.recipe) != _trains(now):
        return "one by another version of the recipe"
    words = {
        "data": "one that was trained on other data",
        "selected_on": "one that was selected on other data",
        "encoder": "one that began from other weights",
    }
    pairs = {name: {getattr(kept.origin, name), getattr(origin, name)} - {""} for name in words}
    return next((said for name, said in words.items() if len(pairs[name]) > 1), "")


def _begin_with(model: PonderForSequenceClassification, begun: PonderForSequenceClassification) -> None:
    """Take over the encoder and the head, which becomes that of the last step where there is one a step."""
    head = model.ponder.head
    model.encoder.load_state_dict(begun.encoder.state_dict())
    (head.heads[-1] if isinstance(head, PerStep) else head).load_state_dict(begun.ponder.head.state_dict())


def train_stage(
    config: RunConfig,
    task: Task,
    model: PonderForSequenceClassification,
    data: Dataset,
    selected_on: Dataset,
    folder: Path,
    progress: bool,
) -> dict[str, Any]:
    """Train what `model` leaves unfrozen with its objective, load the best epoch, and say what was measured.

    `folder` holds the checkpoints. The best epoch has the best score at the exits of the model's policy or, where every
    step has a head and all of them learn, the best mean of the steps' scores: there the same threshold lets rows go the
    earlier the surer the heads become, so that the score at the exits would tell of the threshold, not of the steps.
    """
    keep_whole = KeepWhole()
    every_step = model.recipe.per_step_heads and not isinstance(model.ponder.objective, FinalStep | Ponder)
    trainer = _Trainer(
        model=model,
        args=_arguments(config, folder, len(data), progress),
        train_dataset=data,
        eval_dataset=selected_on,
        data_collator=Collator(load_tokenizer(config.backbone)),
        compute_metrics=_score_of_steps(task, model, selected_on) if every_step else _score(task),
        every_step=every_step,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=config.stop_after), keep_whole],
        lambda_lr=config.lambda_lr if model.recipe.own_lambda_lr else None,
        head_lr=config.head_lr,
    )
    trainer.remove_callback(ProgressCallback if progress else PrinterCallback)
    if progress:
        trainer.add_callback(ShortLines)
    if distributed.is_first():
        last_whole(folder)  # the others look only once the first has cleared away what is broken
    distributed.wait()
    checkpoint = last_whole(folder)
    ended = None if checkpoint is None else _epochs_where_it_ended(checkpoint)
    if ended is not None:
        trainer.args.num_train_epochs = ended  # nothing is left but to load the best epoch
    keep_whole.before = 0.0 if checkpoint is None else seconds_until(checkpoint)
    with _attention_for_training(model), quick_products(config.bf16):
        outcome = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    history = [entry for entry in trainer.state.log_history if "eval_score" in entry]
    return {
        "objective": model.ponder.objective.to_dict(),
        "seconds": round(keep_whole.before + outcome.metrics["train_runtime"], 1)
        if keep_whole.before is not None
        else None,
        "epochs": len(history),
        "selected_by": trainer.selected_by,
        "held_out_scores": [round(entry["eval_score"], 6) for entry in history],
        "held_out_exit_steps": [round(entry["eval_mean_exit_step"], 4) for entry in history],
    }


@contextmanager
def _attention_for_training(model: PonderForSequenceClassification) -> Iterator[None]:
    """Write attention out on a CPU, where the fused kernel has no dropout, and what it falls back to is slower."""
    before = model.encoder.config._attn_implementation
    if not torch.accelerator.is_available():
        model.encoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.encoder.set_attn_implementation(before)


class _Trainer(PonderTrainer):
    """The order of the examples is a function of seed and epoch alone.

    So it is the same on one process and on several, and in a run that was cut off and goes on. Where epochs are told
    apart by all steps (`every_step`), they are under any policy.
    """

    def __init__(self, *args: Any, every_step: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._every_step = every_step
        self.selected_by = "mean over steps" if every_step else "exits"

    def _tells_epochs_apart(self, wrapper: PonderWrapper, stage: Stage) -> bool:
        """Whether the score of an epoch can differ from that of another; else the last one is kept, and said to be."""
        told = self._every_step or super()._tells_epochs_apart(wrapper, stage)
        if not told:
            self.selected_by = "last epoch"
        return told

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Evaluate as Transformers does, but that the metrics see the exits too."""
        return super().evaluate(eval_dataset, ignore_keys or [], *args, **kwargs)

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
        per_device_train_batch_size=distributed.share(config.batch_size),
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


def _score(task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits, exit_step, *_ = (np.asarray(each) for each in prediction.predictions)
        scores = metrics.score(task, metrics.answers(task, logits), np.asarray(prediction.label_ids))
        return {"score": scores["score"], "mean_exit_step": float(np.mean(exit_step))}

    return compute


def _score_of_steps(
    task: Task, model: PonderForSequenceClassification, data: Dataset
) -> Callable[[EvalPrediction], dict[str, float]]:
    at_exits = _score(task)

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        trajectory = record(model, data)
        assert trajectory.labels is not None
        labels, of_steps = trajectory.labels.numpy(), trajectory.outputs.float().numpy().swapaxes(0, 1)
        scores = [metrics.score(task, metrics.answers(task, outputs), labels)["score"] for outputs in of_steps]
        return {**at_exits(prediction), "score": float(np.mean(scores))}

    return compute


class ShortLines(ProgressCallback):
    """The bar of Transformers, and above it a line an epoch in place of all that is logged."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a line once an epoch was evaluated."""
        bar: Any = self.training_bar
        if bar is None or logs is None or "eval_score" not in logs:
            return
        loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), math.nan)
        bar.write(
            f"epoch {logs['epoch']:.0f}: loss {loss:.4g}, score {100 * logs['eval_score']:.1f} %, "
            f"mean exit step {logs['eval_mean_exit_step']:.2f}"
        )


class KeepWhole(TrainerCallback):
    """Marks each checkpoint that has been written, and removes those that are neither the last nor the best.

    Use with `save_total_limit=None`: `Trainer` itself would remove old checkpoints before the new one is marked.
    The mark holds the seconds of training until then.
    """

    before: float | None = 0.0
    """Seconds of training before this start; None where they are not known."""
    _began: float | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called once training starts, or goes on."""
        self._began = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called once the files of a checkpoint are there."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir or ".")
        last = folder / f"checkpoint-{state.global_step}"
        known, began = self.before, self._began
        seconds = "" if known is None or began is None else f"{known + time.perf_counter() - began:.1f}"
        (last / _MARK).write_text(seconds)
        best = None if state.best_model_checkpoint is None else Path(state.best_model_checkpoint).name
        for other in _checkpoints(folder):
            if other.name not in (last.name, best):
                _remove(other)


def last_whole(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end, or None; what is there in part is removed."""
    whole = None
    for path in _checkpoints(folder):
        if (path / _MARK).exists():
            whole = path
        else:
            _remove(path)
    return whole


def seconds_until(checkpoint: Path) -> float | None:
    """The seconds of training until a checkpoint; None of those that an earlier version wrote."""
    noted = (checkpoint / _MARK).read_text()
    return float(noted) if noted else None


def _epochs_where_it_ended(checkpoint: Path) -> float | None:
    """The number of epochs after which training had been stopped early when this was written; None where it had not.

    `Trainer` itself forgets that it was about to stop, and would train for one epoch more.
    """
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    control = state.stateful_callbacks.get("TrainerControl", {})
    stopped = isinstance(control, dict) and control.get("args", {}).get("should_training_stop", False)
    return state.epoch if stopped else None


def _checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in a folder, by step."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    return sorted((path for path, step in steps.items() if step), key=lambda path: int(path.name[11:]))


def _remove(checkpoint: Path) -> None:
    (checkpoint / _MARK).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
