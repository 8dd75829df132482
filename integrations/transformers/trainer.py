"""A `Trainer` whose heads learn at their own rates, and that tells the model how far training has come."""

from __future__ import annotations

import inspect
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import EvalLoopOutput, has_length
from transformers.utils import SAFE_WEIGHTS_NAME

from ponder.engine.losses import count_labelled, of_joined
from ponder.errors import ArgumentError
from ponder.integrations.transformers.arguments import span_labels
from ponder.integrations.transformers.heads import check_heads_learn
from ponder.integrations.transformers.modeling import PonderPreTrainedModel
from ponder.objectives import Progress
from ponder.optim import may_fuse, parameter_groups
from ponder.parts.tasks import Span, Task
from ponder.policies import LastStep
from ponder.priors.base import PriorWeights
from ponder.recipes import Stage
from ponder.recipes.staging import tells_epochs_apart
from ponder.training.hazards import tell_of_untrained_hazards
from ponder.training.measured import Means, measured
from ponder.wrapper import PonderWrapper

__all__ = ["PonderTrainer"]

_END = "end"  # in the folder of a stage: the weights with which it ended
_BEGAN = "began"  # in that of the first: which run it is, by a name that no other has
_RUN = "run"  # in a checkpoint: the run that it is of; others may have left theirs in the same folder


class PonderTrainer(Trainer):
    """`transformers.Trainer` with its optimiser (`args.optim`; fused AdamW by default) over `ponder.parameter_groups`.

    It tells the model how far training has come (`PonderWrapper.progress`), for objectives that change on the way. To
    what the Trainer logs it adds the task's loss of each step, `loss_step_1` …, and with a Lambda head `expected_steps`
    and `kl` (from the halting distribution to the prior): means over the examples since the last log. To what an
    evaluation measures it adds `exit_step`; its loss is the mean over the rows that have a label.

    `args.label_smoothing_factor` smooths the labels of every step, where Trainer itself would smooth the loss of the
    last step and leave the recipe's out.

    Accumulated batches, and those of several processes, weigh as their labelled rows: they train what their joined
    batch trains. That is so for the models of this package, also with adapters of peft; of a model of your own around a
    `PonderWrapper`, whose loss may be any, batches weigh alike.

    Args:
        args: The first arguments of `Trainer`.
        lambda_lr: Learning rate of the Lambda head; that of the model where None.
        head_lr: Learning rate of the heads; that of the model where None.
        all_stages: Let `train` run every stage of the model's recipe, each as long as `args` says, with a new optimiser
            and schedule. Where False, the stage that the model was started with (`start_stage`) is trained.
        kwargs: Keyword arguments of `Trainer`.

    Raises:
        ArgumentError: A `compute_loss_func` is given, which would replace the objective of the recipe; `args` ask for
            label smoothing, and the labels are no classes; the heads of a model with adapters of peft are frozen; an
            optimiser is given beside `lambda_lr` or `head_lr`; or `all_stages` with `model_init` or `optimizers`.

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
        all_stages: bool = False,
        **kwargs: Any,
    ) -> None:
        self.lambda_lr = lambda_lr
        self.head_lr = head_lr
        self.all_stages = all_stages
        self._run: str | None = None  # the name of a run of several stages
        self._at_full_depth = False
        self._evaluated = self._rows = 0
        self._seen = {True: Means(), False: Means()}  # in training mode, and in evaluation mode
        super().__init__(*args, **kwargs)
        if self.args.label_smoothing_factor:
            _smoothed(self.model, self.args.label_smoothing_factor)  # or why it cannot be
            self.label_smoother = None  # it would take the labels away from the model
        wrapper = _wrapper_in(self.model)
        if wrapper is not None:
            wrapper.check_trainable()
        if wrapper is not None and self.compute_loss_func is not None:
            raise ArgumentError(
                "compute_loss_func",
                expected="None: it would see the answers at the exits alone, and the recipe's objective would be lost",
                got=getattr(self.compute_loss_func, "__name__", repr(self.compute_loss_func)),
                remedy="Weigh classes by model.ponder.task = ponder.tasks.Classification(weight=(…)); any other loss "
                "of each step is that of a subclass with losses() of its own.",
            )
        trained: Any = self.model
        self._ours = any(isinstance(module, PonderPreTrainedModel) for module in trained.modules())
        self._by_rows = self._ours and not self.model_accepts_loss_kwargs  # their loss is a mean over labelled rows
        if wrapper is not None:
            check_heads_learn(self.model, wrapper)
        rates = [name for name, rate in (("lambda_lr", lambda_lr), ("head_lr", head_lr)) if rate is not None]
        if self.optimizer is not None and rates:
            raise ArgumentError(
                rates[0],
                expected="None beside an optimiser of your own, which has its rates already",
                got=f"{' and '.join(rates)} with optimizers=…",
                remedy="Build it with ponder.parameter_groups(model, lr, lambda_lr, head_lr), or pass "
                "optimizer_cls_and_kwargs instead of it.",
            )
        given = [name for name in ("model_init", "optimizers") if kwargs.get(name) not in (None, (None, None))]
        if all_stages and given:
            raise ArgumentError(
                "all_stages",
                expected="False: each stage goes on with the model of the one before, by an optimiser of its own",
                got=f"True with {' and '.join(given)}",
                remedy="Pass the model, lambda_lr and head_lr; or start each stage: model.start_stage(stage).",
            )
        if all_stages and not isinstance(self.model, PonderPreTrainedModel):
            raise ArgumentError(
                "all_stages",
                expected="False for a model that has no recipe",
                got=f"True with a {type(self.model).__name__}",
                remedy="Pass a model of ponder.integrations.transformers itself.",
            )

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train as Transformers does; with `all_stages`, each stage in turn, and give what the last one gave.

        Stages before the last are evaluated at full depth, unless they train the exits alone: until then exits say
        nothing.
        Where the policy looks at nothing that a stage trains (early heads under `LastStep`, say), all evaluations score
        alike: such a stage runs to its end and keeps the last weights, whatever `load_best_model_at_end` and
        `EarlyStoppingCallback` say.
        What was frozen before stays frozen in every stage. Several stages write their checkpoints to folders of their
        own, `stage-1` … in `args.output_dir`, and, where checkpoints are saved at all, what a stage ended with to
        `stage-1/end` …, from which `resume_from_checkpoint=True` goes on with the stage that was cut off. After all
        stages the objective is that of the first again: without `all_stages`, another call goes on with it, and warns.
        """
        if isinstance(self.model, PonderPreTrainedModel) and self.args.save_strategy != "no":
            self.model.check_readable()  # or its first checkpoint would end the training
        wrapper = _wrapper_in(self.model)
        if wrapper is not None:
            own, of_stages = wrapper.objective, [stage.objective for stage in wrapper.stages]
            is_one_of_them = self.all_stages or own in of_stages  # and the others are trained before or after it
            tell_of_untrained_hazards(of_stages if of_stages and is_one_of_them else [own], wrapper)
        self._seen[True].taken()  # what a training of before saw after its last log
        try:
            if self.all_stages:
                return self._train_stages(resume_from_checkpoint, *args, **kwargs)
            with self._keeping_last(None if wrapper is None else wrapper.freezing_stage):
                return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            _tell_progress(self.model, None)

    def _train_stages(self, resume_from_checkpoint: Any, *args: Any, **kwargs: Any) -> Any:
        """Train each stage in turn, and leave the model as `ponder.fit` does."""
        if resume_from_checkpoint not in (None, False, True):
            raise ArgumentError(
                "resume_from_checkpoint",
                expected="True, to go on with the stage that was cut off: a checkpoint does not say which one it is of",
                got=repr(resume_from_checkpoint),
                remedy="Pass True, and the folder of the stages as output_dir.",
            )
        model: Any = self.model
        stages = model.ponder.stages or (Stage(model.ponder.objective),)
        folder = self.args.output_dir or ""
        model.ponder.check_stages("leave all_stages out")
        model.ponder.thaw_stage()
        apart = len(stages) > 1
        folders = [os.path.join(folder, f"stage-{n}") if apart else folder for n in range(1, len(stages) + 1)]
        first, checkpoint = self._left_off(folders) if resume_from_checkpoint else (0, None)
        if apart and not resume_from_checkpoint and self.is_world_process_zero():
            for own in folders:  # what a run of before ended with is no state to go on from
                shutil.rmtree(os.path.join(own, _END), ignore_errors=True)
            os.makedirs(folders[0], exist_ok=True)
            self._run = uuid.uuid4().hex
            Path(folders[0], _BEGAN).write_text(self._run)
        found = None
        try:
            for stage, self.args.output_dir in list(zip(stages, folders, strict=True))[first:]:
                model.start_stage(stage)
                self.optimizer = self.lr_scheduler = None
                self._seen[True].taken()  # what the stage before saw after its last log
                # As in `ponder.fit`: until the exits are trained, they say nothing of an epoch.
                self._at_full_depth = stage is not stages[-1] and stage.train == "all"
                with self._keeping_last(stage):
                    found = super().train(checkpoint, *args, **kwargs)
                checkpoint = None
                model.finish_stage(stage)
                if self.args.output_dir != folders[-1] and self.args.save_strategy != "no":
                    self._save_rng_state(self.args.output_dir)
                    self.save_model(os.path.join(self.args.output_dir, _END), _internal_call=True)
        finally:
            self._at_full_depth, self._run = False, None
            self.args.output_dir = folder
            model.ponder.leave_stages()
        return found

    def _tells_epochs_apart(self, wrapper: PonderWrapper, stage: Stage) -> bool:
        """Whether evaluations can tell epochs of a stage apart: a trainer with metrics of its own may know better.

        Args:
            wrapper: The model, with the policy under which it is evaluated.
            stage: The stage that is trained.
        """
        return tells_epochs_apart(wrapper.policy, stage, wrapper.num_steps)

    @contextmanager
    def _keeping_last(self, stage: Stage | None) -> Iterator[None]:
        """Train to the end and keep the last weights, for the length of a block, where no evaluation tells them apart.

        Args:
            stage: The stage that is trained; None where none freezes anything.
        """
        wrapper = _wrapper_in(self.model)
        if wrapper is None or stage is None or self._tells_epochs_apart(wrapper, stage):
            yield
            return
        best = self.args.load_best_model_at_end
        stopping = [each for each in self.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
        for callback in stopping:
            self.remove_callback(callback)
        self.args.load_best_model_at_end = False
        try:
            yield
        finally:
            self.args.load_best_model_at_end = best
            for callback in stopping:
                self.add_callback(callback)

    def _left_off(self, folders: list[str]) -> tuple[int, str | None]:
        """The stage that was cut off, with the weights before it in the model, and its last checkpoint, if any.

        Where it has none, the random numbers are those with which it began, too.
        """
        done = 0
        while done < len(folders) - 1 and os.path.isdir(os.path.join(folders[done], _END)):
            done += 1
        self._run = _text_of(Path(folders[0], _BEGAN))
        checkpoint = _last_checkpoint(folders[done], self._run)
        if not done and checkpoint is None:
            raise ArgumentError(
                "resume_from_checkpoint",
                expected=f"checkpoints of a stage in {folders[0]!r}",
                got="none",
                remedy="Train with save_strategy='epoch' or 'steps', and leave resume_from_checkpoint out at first.",
            )
        if done:
            self._load_from_checkpoint(os.path.join(folders[done - 1], _END))
        if checkpoint is None:  # else it has the random numbers that the stage goes on with
            self._load_rng_state(folders[done - 1])
        return done, checkpoint

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save as Transformers does, and then of which run it is, where there are several stages.

        File times do not tell: they are lost where a folder is copied.
        """
        super()._save_checkpoint(*args, **kwargs)
        folder = Path(self.args.output_dir or "", f"checkpoint-{self.state.global_step}")
        if self._run and self.args.should_save and folder.is_dir():
            (folder / _RUN).write_text(self._run)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load weights as Transformers does, and those whose names it changes in files by their names here."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        _load_renamed(self.model if model is None else model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """The same of the best checkpoint."""
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            _load_renamed(self.model, self.state.best_model_checkpoint)

    def training_step(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One step of training, after the model was told which."""
        _tell_progress(model, Progress(min(self.state.global_step, self.state.max_steps), max(self.state.max_steps, 1)))
        return super().training_step(model, *args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The batches of one step of the optimiser, and how many of their rows have a label, in all processes."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        wrapper = _wrapper_in(self.model)
        if wrapper is not None and self._by_rows and len(batches) * self.args.world_size > 1:
            own = torch.as_tensor(sum(_count_labelled(wrapper, batch) for batch in batches), device=device)
            items = self.accelerator.gather(own).sum()
        return batches, items

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        """Compute the loss as Transformers does, and keep in mind what is logged of it.

        Where several batches, or processes, make one step of the optimiser, each weighs as its labelled rows, which
        `num_items_in_batch` counts in all of them: what is averaged is the mean over the rows of the joined batch.
        """
        wrapper = _wrapper_in(model)
        share = self.args.label_smoothing_factor
        with nullcontext() if wrapper is None else _with_task(wrapper, _smoothed(self.model, share) if share else None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch, **kwargs)
            if wrapper is not None and self._by_rows and num_items_in_batch is not None:
                parts = self.current_gradient_accumulation_steps * self.args.world_size
                loss = of_joined(loss, _count_labelled(wrapper, inputs), num_items_in_batch, parts)
            told = outputs if isinstance(outputs, Mapping) else {}  # of a model of the caller's own, maybe a tuple
            if wrapper is not None and told.get("exit_step") is not None:
                seen = _measured(wrapper, outputs, _labels_of(inputs))
                if not model.training and self._by_rows:
                    seen |= _shares(loss, _count_labelled(wrapper, inputs), len(seen["exit_step"]))
                # Of all processes, as Trainer gathers losses, without the rows that fill the last batch up.
                self._seen[model.training].add(seen if model.training else self.accelerator.gather_for_metrics(seen))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as Transformers does, with what training has seen since the last log."""
        if "loss" in logs:
            logs = {**logs, **self._seen[True].taken(gather_object)}
        super().log(logs, *args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate as Transformers does, and report the mean exit of the examples too."""
        self._seen[False].taken()
        self._evaluated = self._rows = 0  # batches, and rows, of this process
        wrapper = _wrapper_in(self.model) if self._at_full_depth else None
        with nullcontext() if wrapper is None else wrapper.temporary_policy(LastStep()):
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        seen = self._seen[False].taken()
        loss, labelled = seen.pop("loss", 0.0), seen.pop("labelled", 0.0)
        if labelled:  # Trainer weighs batches by all of their rows
            seen["loss"] = loss / labelled
        told = {f"{metric_key_prefix}_{name}": mean for name, mean in seen.items()}
        return output._replace(metrics={**(output.metrics or {}), **told})

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In the order of the data, also where training groups rows by length: rows are told by their place."""
        if eval_dataset is None or not has_length(eval_dataset) or self.args.world_size > 1:
            return None  # a loader of several processes, or of a stream, goes in order by itself
        return SequentialSampler(eval_dataset)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """A batch of an evaluation, whose rows are told by their place in the data: sampled exits depend on the row."""
        rows = find_batch_size(inputs)
        if self._ours and rows and "row_ids" not in inputs:
            number = self._evaluated * self.args.world_size + self.args.process_index
            first = number * rows if self.args.world_size > 1 else self._rows
            inputs = {**inputs, "row_ids": torch.arange(first, first + rows)}
            self._evaluated, self._rows = self._evaluated + 1, self._rows + rows
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that the encoder reads, besides those that the model takes.

        Trainer drops what the model's forward does not name, and says nothing. The model refuses it, where it is there.
        """
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            model, columns = cast(Any, self.model), cast(Any, self._signature_columns)
            for part in model.modules():
                if isinstance(part, PonderPreTrainedModel):
                    reads = inspect.signature(part.encoder.forward).parameters
                    columns.extend(name for name in reads if name not in columns)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser of `optimizer_cls_and_kwargs`, or else of `args.optim`, on the trainable parameters.

        Weight decay (`args.weight_decay`) spares biases and normalisation layers, as in `Trainer`, and learned priors.
        """
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            optimizer_class, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                self.args, trained
            )
            rate = options.get("lr", self.args.learning_rate)
            decay = options.get("weight_decay", self.args.weight_decay)
            groups = parameter_groups(trained, rate, self.lambda_lr, self.head_lr)
            others = {name: value for name, value in options.items() if name != "weight_decay"}
            if others.get("fused"):
                others["fused"] = may_fuse(parameter for group in groups for parameter in group["params"])
            self.optimizer = optimizer_class(self._decaying(groups, trained, decay), **others)
        return self.optimizer

    def _decaying(self, groups: list[dict[str, Any]], model: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
        """Each group in two: what decays, and what does not."""
        if not decay:
            return [{**group, "weight_decay": 0.0} for group in groups]
        decayed = set(self.get_decay_parameter_names(model))
        priors = (module for module in model.modules() if isinstance(module, PriorWeights))
        spared = {id(weight) for prior in priors for weight in prior.parameters()}
        decays = {id(weight) for name, weight in model.named_parameters() if name in decayed} - spared
        parts = [
            {
                **group,
                "params": [p for p in group["params"] if (id(p) in decays) == of_decaying],
                "weight_decay": decay if of_decaying else 0.0,
            }
            for group in groups
            for of_decaying in (True, False)
        ]
        return [part for part in parts if part["params"]]


def _last_checkpoint(folder: str, run: str | None) -> str | None:
    """The checkpoint of a run with the most steps, or of any run where None; None where there is none.

    Earlier versions wrote no names: theirs are of the run without one.
    """
    found = {
        int(path.parent.name.rpartition("-")[2]): str(path.parent)
        for path in Path(folder).glob("checkpoint-*/trainer_state.json")
        if run is None or run == (_text_of(path.with_name(_RUN)) or "")
    }
    return found[max(found)] if found else None


def _text_of(path: Path) -> str | None:
    """What is written in a file; None where there is none."""
    return path.read_text() if path.is_file() else None


def _tell_progress(model: Any, progress: Progress | None) -> None:
    """Say how far training has come to all that may ask, or that nobody knows any more."""
    for module in model.modules():
        if isinstance(module, PonderWrapper):
            module.progress = progress


def _wrapper_in(model: Any) -> PonderWrapper | None:
    return next((module for module in model.modules() if isinstance(module, PonderWrapper)), None)


def _load_renamed(model: Any, folder: str) -> None:
    """Load the weights of a checkpoint again where its names are not those of the model, as `from_pretrained` does.

    Transformers writes the layers of ViT, say, by the names of earlier versions, and its Trainer reads the file as it
    is, so that they stay what they were.
    """
    path = os.path.join(folder, SAFE_WEIGHTS_NAME)
    if not isinstance(model, PonderPreTrainedModel) or not os.path.isfile(path):
        return
    with safe_open(path, framework="pt") as file:
        unknown = set(file.keys()) - model.state_dict().keys()
    if unknown:
        read = type(model).from_pretrained(folder).state_dict()
        model.load_state_dict({name: read[name] for name in model.state_dict()})  # it may have a pooler besides


def _smoothed(model: Any, share: float) -> Task:
    """The task of a model, with smoothed labels."""
    wrapper = _wrapper_in(model)
    if wrapper is None or wrapper.task is None:
        raise ArgumentError(
            "label_smoothing_factor",
            expected="0 for a model that names no task",
            got=share,
            remedy="Build the wrapper with task='classification', say.",
        )
    return wrapper.task.smoothed(share)


@contextmanager
def _with_task(wrapper: PonderWrapper, task: Task | None) -> Iterator[None]:
    """Another task for the length of a block; the wrapper's own where None."""
    own = wrapper.task
    wrapper.take_task(task or own)
    try:
        yield
    finally:
        wrapper.take_task(own)


def _labels_of(inputs: Any) -> Tensor | None:
    """The labels of a batch; of spans, their first and last places, `(batch, 2)`."""
    if "start_positions" in inputs and "end_positions" in inputs:
        return span_labels(inputs["start_positions"], inputs["end_positions"])
    labels: Tensor | None = inputs.get("labels")
    return labels


def _count_labelled(wrapper: PonderWrapper, inputs: Any) -> Tensor:
    """How many rows of a batch of texts, images or sounds have a label."""
    labels, task = _labels_of(inputs), wrapper.spec.task
    if labels is None:
        return torch.tensor(0)
    return count_labelled(task, Span.within(labels, inputs["input_ids"].shape[1]) if isinstance(task, Span) else labels)


def _shares(loss: Tensor, labelled: Tensor, rows: int) -> dict[str, Tensor]:
    """What each row adds to the loss of the labelled rows, and to their number, `(rows,)` each."""
    share = labelled.to(loss.device) / max(rows, 1)
    return {"loss": (loss.detach().float() * share).repeat(rows), "labelled": share.repeat(rows)}


def _measured(wrapper: PonderWrapper, outputs: Any, labels: Tensor | None) -> dict[str, Tensor]:
    """What a batch tells of its exits: in training of each step and the halting distribution, else of the exits."""
    if not wrapper.training or outputs.get("step_logits") is None:
        return {"exit_step": outputs["exit_step"].double()}
    return measured(wrapper, outputs["step_logits"].detach(), outputs.get("hazard_logits"), labels)
