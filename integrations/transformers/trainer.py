"""`PonderTrainer`: a `Trainer` that runs every stage of a recipe, with rates for the heads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, get_last_checkpoint

from ponder.errors import ArgumentError
from ponder.integrations.transformers.outputs import PonderModelOutput, span_labels
from ponder.integrations.transformers.texts import ids_by_content
from ponder.objectives import Progress
from ponder.policies import LastStep
from ponder.recipes import Stage
from ponder.tasks import Task
from ponder.training import joined_loss, parameter_groups, run_stage
from ponder.wrapper import PonderWrapper

__all__ = ["PonderTrainer"]

Inputs: TypeAlias = dict[str, Tensor]
"""A batch, by the names of the model's arguments."""
_END = "end"
"""The folder, in that of a stage, of the weights with which the stage ended."""


class _Evaluated(NamedTuple):
    """The rows of a batch that was evaluated, `(rows,)` each."""

    losses: Tensor
    """Loss of the batch, times the share of its rows that have a label."""
    labelled: Tensor
    """That share."""
    exit_step: Tensor


class PonderTrainer(Trainer):
    """`transformers.Trainer` for models with exits, with all stages of the recipe.

    The optimiser (`args.optim`) works on `ponder.parameter_groups`, and objectives that depend on
    the progress of training get it. Evaluations run each row to its exit, and add the mean
    `exit_step` to the metrics. Accumulated batches, and those of several processes, are weighted by
    their labelled rows. `args.label_smoothing_factor` smooths the labels of every step.

    Each stage runs for the duration in `args`, with a new optimiser and schedule, and freezes the
    parts that it does not train. Several stages write their checkpoints to the folders `stage-1` …
    in `args.output_dir`, and their last weights to `stage-1/end` …;
    `train(resume_from_checkpoint=True)` continues the stage that was interrupted. Stages before the
    last are evaluated at full depth, since exits mean nothing before they are trained, unless the
    stage trains the exits alone.

    Args:
        args: The first arguments of `Trainer`.
        lambda_lr: Learning rate of the Lambda head. By default that of the model.
        head_lr: Learning rate of the heads. By default that of the model.
        kwargs: Keyword arguments of `Trainer`.

    Raises:
        ArgumentError: The heads of a model with adapters of peft are frozen. In training, a
            `compute_loss_func` uses the last step alone.

    Example:
        >>> from transformers import TrainingArguments
        >>> rows = [{"input_ids": [2, 3, 4], "labels": n % 3} for n in range(8)]
        >>> arguments = TrainingArguments(
        ...     "runs", max_steps=1, report_to=[], disable_tqdm=True, use_cpu=True
        ... )
        >>> trainer = PonderTrainer(
        ...     model, arguments, lambda_lr=1e-4, train_dataset=rows, processing_class=tokenizer
        ... )
        >>> trainer.train().global_step
        {'train_runtime': ...}
        1
    """

    def __init__(
        self,
        *args: Any,
        lambda_lr: float | None = None,
        head_lr: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.lambda_lr = lambda_lr
        self.head_lr = head_lr
        self._at_full_depth = False
        self._evaluated: list[_Evaluated] = []
        super().__init__(*args, **kwargs)
        self._smoothing = self.args.label_smoothing_factor
        self.label_smoother = None
        self.loss_is_scaled_for_ga = True  # `compute_loss` scales it
        wrapper = self.wrapper
        frozen = not any(weight.requires_grad for weight in wrapper.head.parameters())
        if frozen and hasattr(self.model, "peft_config"):
            raise ArgumentError(
                "modules_to_save",
                expected="the heads, which are new and must be trained in full",
                got="heads that are frozen",
                remedy="Pass LoraConfig(…, modules_to_save=model.head_names), or the task_type of "
                "the model.",
            )

    @property
    def wrapper(self) -> PonderWrapper:
        """The wrapper in the model, around which peft may have put modules."""
        trained: Any = self.model
        return next(part for part in trained.modules() if isinstance(part, PonderWrapper))

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Train every stage as Transformers does, and return the output of the last one."""
        stages = self.wrapper.stages
        if len(stages) == 1:
            with self._stage(stages[0], last=True):
                return super().train(resume_from_checkpoint, *args, **kwargs)
        folder = Path(self.args.output_dir or "")
        folders = [folder / f"stage-{number}" for number in range(1, len(stages) + 1)]
        first = 0
        checkpoint: str | None = None
        if resume_from_checkpoint:
            first = self._load_finished(folders)
            if folders[first].is_dir():
                checkpoint = get_last_checkpoint(str(folders[first]))
        elif self.is_world_process_zero():
            for stage_folder in folders:  # a later resumption must not find another run
                shutil.rmtree(stage_folder, ignore_errors=True)
        try:
            for number in range(first, len(stages)):
                is_last = number == len(stages) - 1
                self.args.output_dir = str(folders[number])
                self.optimizer = None
                self.lr_scheduler = None
                with self._stage(stages[number], last=is_last):
                    output = super().train(checkpoint, *args, **kwargs)
                checkpoint = None
                if not is_last and self.args.save_strategy != "no":
                    self.save_model(str(folders[number] / _END), _internal_call=True)
        finally:
            self.args.output_dir = str(folder)
        return output

    @contextmanager
    def _stage(self, stage: Stage, *, last: bool) -> Iterator[None]:
        """Train one stage inside the block; keep its last weights if all epochs score alike."""
        wrapper = self.wrapper
        policy = wrapper.policy
        trains_exits = stage.train != "all"
        ignores_hazards = stage.train == "lambda_head" and "hazard" not in policy.needs
        runs_to_end = policy.exit_of_all(wrapper.num_steps) == wrapper.num_steps
        # Then all epochs have one score, of which the first would be the best.
        scores_are_equal = ignores_hazards or (trains_exits and runs_to_end)
        load_best = self.args.load_best_model_at_end
        callbacks = self.callback_handler.callbacks
        stopping = [each for each in callbacks if isinstance(each, EarlyStoppingCallback)]
        self._at_full_depth = not last and not trains_exits
        if scores_are_equal:
            self.args.load_best_model_at_end = False
            for callback in stopping:
                self.remove_callback(callback)
        try:
            with run_stage(wrapper, stage):
                yield
        finally:
            self._at_full_depth = False
            self.args.load_best_model_at_end = load_best
            if scores_are_equal:
                for callback in stopping:
                    self.add_callback(callback)

    def _load_finished(self, folders: list[Path]) -> int:
        """Load the last weights of the stages that ended, and return how many these are."""
        finished = 0
        while finished < len(folders) - 1 and (folders[finished] / _END).is_dir():
            finished += 1
        if finished:
            self._load_from_checkpoint(str(folders[finished - 1] / _END))
        return finished

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Make one step of training, after setting its progress."""
        self.wrapper.progress = Progress(
            min(self.state.global_step, self.state.max_steps), max(self.state.max_steps, 1)
        )
        return super().training_step(model, *args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Inputs], num_batches: int, device: torch.device
    ) -> tuple[list[Inputs], Tensor]:
        """Return the batches of one optimiser step, and their labelled rows in all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        labelled = torch.as_tensor(sum(self._labelled(batch) for batch in batches), device=device)
        return batches, self.accelerator.gather(labelled).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, PonderModelOutput]:
        """Compute the loss with smoothed labels, weighted by the labelled rows of the batch."""
        base: Any = super()
        loss: Tensor
        with self._smoothed():
            loss, outputs = base.compute_loss(model, inputs, True, None, **kwargs)
        labelled = self._labelled(inputs)
        if not model.training:
            exit_step = outputs["exit_step"]
            share = labelled.to(loss.device) / max(len(exit_step), 1)
            losses = (loss.detach().float() * share).expand(len(exit_step))
            of_rows = (losses, share.expand(len(exit_step)), exit_step.double())
            self._evaluated.append(_Evaluated(*self.accelerator.gather_for_metrics(of_rows)))
        elif num_items_in_batch is not None:
            total = torch.as_tensor(num_items_in_batch)
            loss = joined_loss(loss, labelled, total, self.args.world_size)
        if return_outputs:
            return loss, outputs
        return loss

    @contextmanager
    def _smoothed(self) -> Iterator[None]:
        """Smooth the labels of every step inside a block."""
        wrapper = self.wrapper
        task = self.wrapper.task
        if self._smoothing and task is not None:
            wrapper.task = task.smoothed(self._smoothing)
        try:
            yield
        finally:
            if self._smoothing:
                wrapper.task = task

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Evaluate as Transformers does, and report the mean exit of the examples, too."""
        base: Any = super()
        wrapper = self.wrapper
        self._evaluated = []
        policy = wrapper.policy
        if self._at_full_depth:
            wrapper.policy = LastStep()
        try:
            output: EvalLoopOutput = base.evaluation_loop(
                *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
        finally:
            wrapper.policy = policy
        if not self._evaluated:
            return output
        losses = torch.cat([batch.losses for batch in self._evaluated])
        labelled = torch.cat([batch.labelled for batch in self._evaluated])
        exit_step = torch.cat([batch.exit_step for batch in self._evaluated])
        measured = {f"{metric_key_prefix}_exit_step": float(exit_step.mean())}
        if float(labelled.sum()):  # Trainer weights batches by all of their rows
            measured[f"{metric_key_prefix}_loss"] = float(losses.sum() / labelled.sum())
        return output._replace(metrics={**(output.metrics or {}), **measured})

    def prediction_step(
        self, model: nn.Module, inputs: Inputs, *args: Any, **kwargs: Any
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Evaluate a batch with row ids by content, since sampled exits depend on the row."""
        ids = ids_by_content(inputs)
        named: dict[str, Tensor | None] = {**inputs, "row_ids": None}
        if len(ids):
            named["row_ids"] = ids
        return super().prediction_step(model, named, *args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that the encoder reads, and those that the model's forward names."""
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            columns: Any = self._signature_columns
            stem: Any = self.wrapper.stem
            columns.extend(name for name in sorted(stem.adapter.inputs) if name not in columns)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimiser of `args.optim` with groups for encoder, heads and Lambda head."""
        if self.optimizer is None:
            trained: Any = model
            if model is None:
                trained = self.model
            optimizer_class, options = (
                self.optimizer_cls_and_kwargs
                or self.get_optimizer_cls_and_kwargs(self.args, trained)
            )
            rate = options.get("lr", self.args.learning_rate)
            decay = options.pop("weight_decay", self.args.weight_decay)
            groups = parameter_groups(trained, rate, self.lambda_lr, self.head_lr, decay)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _labelled(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the number of rows of a batch that have a label."""
        labels = span_labels(inputs.get("start_positions"), inputs.get("end_positions"))
        if labels is None:
            labels = inputs.get("labels")
        task: Task | None = self.wrapper.task
        if labels is None or task is None:
            return torch.tensor(0)
        count: Tensor = task.labelled(labels).sum()
        return count
