"""`PonderTrainer`: a `Trainer` whose heads learn at their own rates, that runs every stage of a recipe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput, get_last_checkpoint

from ponder.errors import ArgumentError
from ponder.integrations.transformers.modeling import span_labels
from ponder.integrations.transformers.texts import ids_by_content
from ponder.objectives import Progress
from ponder.policies import LastStep
from ponder.recipes import Stage
from ponder.tasks import Task
from ponder.training import joined_loss, parameter_groups, run_stage
from ponder.wrapper import PonderWrapper

__all__ = ["PonderTrainer"]

_END = "end"  # in the folder of a stage: the weights with which it ended


class PonderTrainer(Trainer):
    """`transformers.Trainer` for models with exits: all stages of the recipe, and rates of learning for the heads.

    The optimiser (`args.optim`) works on `ponder.parameter_groups`, and objectives that change on
    the way know how far training has come. Evaluations run each row to its exit, and add the mean
    `exit_step` to what they measure. Accumulated batches, and those of several processes, weigh as
    their labelled rows. `args.label_smoothing_factor` smooths the labels of every step.

    Each stage runs as long as `args` says, with an optimiser and a schedule of its own, and freezes
    what it does not train. Several stages write their checkpoints to folders of their own,
    `stage-1` … in `args.output_dir`, and what a stage ended with to `stage-1/end` …;
    `train(resume_from_checkpoint=True)` goes on with the stage that was cut off. Stages before the
    last are evaluated at full depth, unless they train the exits alone: until then exits say
    nothing.

    Args:
        args: The first arguments of `Trainer`.
        lambda_lr: Learning rate of the Lambda head; that of the model where None.
        head_lr: Learning rate of the heads; that of the model where None.
        kwargs: Keyword arguments of `Trainer`.

    Raises:
        ArgumentError: The heads of a model with adapters of peft are frozen. In training, a
            `compute_loss_func` takes a loss of the last step alone.

    Example:
        >>> from transformers import TrainingArguments
        >>> rows = [{"input_ids": [2, 3, 4], "labels": n % 3} for n in range(8)]
        >>> arguments = TrainingArguments("runs", max_steps=1, report_to=[], disable_tqdm=True, use_cpu=True)
        >>> trainer = PonderTrainer(model, arguments, lambda_lr=1e-4, train_dataset=rows, processing_class=tokenizer)
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
        self._seen: list[
            tuple[Tensor, Tensor, Tensor]
        ] = []  # loss, labelled rows and exits of each batch
        super().__init__(*args, **kwargs)
        self._smoothing = self.args.label_smoothing_factor
        self.label_smoother = None
        self.loss_is_scaled_for_ga = True  # by `compute_loss`
        wrapper = self.wrapper
        frozen = not any(weight.requires_grad for weight in wrapper.head.parameters())
        if frozen and hasattr(self.model, "peft_config"):
            expected = "the heads, which are new and have to be trained in full beside the adapters"
            remedy = "Pass LoraConfig(…, modules_to_save=model.head_names), or the task_type of the model."
            raise ArgumentError(
                "modules_to_save", expected=expected, got="heads that are frozen", remedy=remedy
            )

    @property
    def wrapper(self) -> PonderWrapper:
        """The wrapper in the model, also where peft has put modules around it."""
        trained: Any = self.model
        return next(part for part in trained.modules() if isinstance(part, PonderWrapper))

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train every stage as Transformers trains, and return what the last one gave."""
        wrapper = self.wrapper
        stages = wrapper.stages
        if len(stages) == 1:
            with self._stage(stages[0], last=True):
                return super().train(resume_from_checkpoint, *args, **kwargs)
        folder = Path(self.args.output_dir or "")
        folders = [folder / f"stage-{number}" for number in range(1, len(stages) + 1)]
        first, checkpoint = self._cut_off(folders) if resume_from_checkpoint else (0, None)
        if not resume_from_checkpoint and self.is_world_process_zero():
            for own in folders:
                shutil.rmtree(
                    own, ignore_errors=True
                )  # what another run ended with is no state to go on from
        found = None
        try:
            for stage, own in list(zip(stages, folders, strict=True))[first:]:
                self.args.output_dir = str(own)
                self.optimizer = self.lr_scheduler = None
                with self._stage(stage, last=stage is stages[-1]):
                    found = super().train(checkpoint, *args, **kwargs)
                checkpoint = None
                if own != folders[-1] and self.args.save_strategy != "no":
                    self.save_model(str(own / _END), _internal_call=True)
        finally:
            self.args.output_dir = str(folder)
        return found

    @contextmanager
    def _stage(self, stage: Stage, *, last: bool) -> Iterator[None]:
        """Train one stage inside the block; its last weights are kept where all epochs score alike."""
        wrapper = self.wrapper
        best = self.args.load_best_model_at_end
        frozen = stage.train != "all"
        unread = stage.train == "lambda_head" and "hazard" not in wrapper.policy.needs
        alike = unread or (
            frozen and wrapper.policy.exit_of_all(wrapper.num_steps) == wrapper.num_steps
        )
        stopping = [
            each
            for each in self.callback_handler.callbacks
            if isinstance(each, EarlyStoppingCallback)
        ]
        self._at_full_depth = not last and not frozen
        if alike:
            self.args.load_best_model_at_end = False
            for callback in stopping:
                self.remove_callback(callback)
        try:
            with run_stage(wrapper, stage):
                yield
        finally:
            self._at_full_depth = False
            self.args.load_best_model_at_end = best
            for callback in stopping if alike else ():
                self.add_callback(callback)

    def _cut_off(self, folders: list[Path]) -> tuple[int, str | None]:
        """The stage that was cut off, with the weights before it in the model, and its last checkpoint, if any."""
        done = next(
            (number for number, own in enumerate(folders[:-1]) if not (own / _END).is_dir()),
            len(folders) - 1,
        )
        if done:
            self._load_from_checkpoint(str(folders[done - 1] / _END))
        return done, get_last_checkpoint(str(folders[done])) if folders[done].is_dir() else None

    def training_step(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Make one step of training, at a known progress."""
        self.wrapper.progress = Progress(
            min(self.state.global_step, self.state.max_steps), max(self.state.max_steps, 1)
        )
        return super().training_step(model, *args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Return the batches of one step of the optimiser, and the number of their labelled rows in all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = torch.as_tensor(sum(self._labelled(batch) for batch in batches), device=device)
        return batches, self.accelerator.gather(own).sum()

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Compute the loss as Transformers does, with smoothed labels, weighed as the labelled rows of the batch."""
        with self._smoothed():
            loss, outputs = super().compute_loss(model, inputs, True, None, **kwargs)
        labelled = self._labelled(inputs)
        if not model.training:
            rows = outputs["exit_step"]
            share = labelled.to(loss.device) / max(len(rows), 1)
            each = (
                (loss.detach().float() * share).expand(len(rows)),
                share.expand(len(rows)),
                rows.double(),
            )
            self._seen.append(self.accelerator.gather_for_metrics(each))
        elif num_items_in_batch is not None:
            loss = joined_loss(loss, labelled, num_items_in_batch, self.args.world_size)
        return (loss, outputs) if return_outputs else loss

    @contextmanager
    def _smoothed(self) -> Iterator[None]:
        """Smooth the labels of every step for the length of a block."""
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
        """Evaluate as Transformers does, and report the mean exit of the examples too."""
        base: Any = super()
        wrapper = self.wrapper
        self._seen = []
        policy = wrapper.policy
        if self._at_full_depth:
            wrapper.policy = LastStep()
        try:
            output: EvalLoopOutput = base.evaluation_loop(
                *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
        finally:
            wrapper.policy = policy
        if not self._seen:
            return output
        loss, labelled, exits = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        measured = {f"{metric_key_prefix}_exit_step": float(exits.mean())}
        if float(labelled.sum()):  # Trainer weighs batches by all of their rows
            measured[f"{metric_key_prefix}_loss"] = float(loss.sum() / labelled.sum())
        return output._replace(metrics={**(output.metrics or {}), **measured})

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch, whose rows are known by their content: sampled exits depend on the row."""
        ids = ids_by_content(inputs)
        return super().prediction_step(
            model, {**inputs, "row_ids": ids if len(ids) else None}, *args, **kwargs
        )

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that the encoder reads, besides those that the model's forward names."""
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            columns: Any = self._signature_columns
            stem: Any = self.wrapper.stem
            columns.extend(name for name in sorted(stem.adapter.inputs) if name not in columns)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimiser of `args.optim`, with a group for the encoder, the heads and the Lambda head."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            optimizer_class, options = (
                self.optimizer_cls_and_kwargs
                or self.get_optimizer_cls_and_kwargs(self.args, trained)
            )
            rate = options.get("lr", self.args.learning_rate)
            decay = options.pop("weight_decay", self.args.weight_decay)
            groups = parameter_groups(trained, rate, self.lambda_lr, self.head_lr, decay)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _labelled(self, inputs: Mapping[str, Any]) -> Tensor:
        """The number of rows of a batch that have a label."""
        labels = span_labels(inputs.get("start_positions"), inputs.get("end_positions"))
        labels = inputs.get("labels") if labels is None else labels
        task: Task | None = self.wrapper.task
        return torch.tensor(0) if labels is None or task is None else task.labelled(labels).sum()
