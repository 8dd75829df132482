"""`fit`: all stages of a recipe on `accelerate`, with early stopping on held-out data."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import cos, inf, isnan, pi
from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from ponder import recipes
from ponder._utils.validation import check_choice, check_flag, check_int, check_real, check_type
from ponder.engine.losses import count_labelled, of_joined
from ponder.errors import ArgumentError, ArgumentTypeError, NonFiniteError, PonderError
from ponder.objectives import Objective, Progress
from ponder.optim import parameter_groups
from ponder.parts.heads import PerStep
from ponder.parts.tasks import infer_task
from ponder.policies import ExitPolicy, LastStep
from ponder.recipes import Recipe, Stage
from ponder.recipes.staging import check_heads, check_made_for, tells_epochs_apart
from ponder.training.batches import read_batch
from ponder.training.measured import Means, measured
from ponder.training.report import EpochReport, FitReport, StageReport
from ponder.training.scoring import HeldOut, Score
from ponder.training.tracking import Bar, Tracking, progress_of
from ponder.wrapper import PonderWrapper

__all__ = ["fit"]

_SCHEDULES = ("linear", "cosine", "constant")
_LOG_EVERY = 10


def fit(
    model: nn.Module,
    loader: Iterable[Any],
    recipe: str | Recipe | None = None,
    *,
    epochs: int = 3,
    held_out: Iterable[Any] | None = None,
    metric: Callable[[Tensor, Tensor], Any] | None = None,
    select: Literal["exits", "steps"] | None = None,
    patience: int | None = 3,
    lr: float = 5e-5,
    head_lr: float | None = 1e-3,
    lambda_lr: float | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.1,
    schedule: Literal["linear", "cosine", "constant"] = "linear",
    clip: float | None = 1.0,
    bf16: bool = False,
    seed: int | None = None,
    trackers: str | Sequence[Any] | None = None,
    folder: str | PathLike[str] | None = None,
    progress: bool = True,
    accelerator: Any = None,
) -> FitReport:
    """Train a model through every stage of its recipe; needs the extra ``train``.

    The stages are those of `PonderWrapper.stages`, which `from_recipe` keeps; a model without any trains its own
    objective (``model.stages = ()`` takes them away). Each stage freezes what it does not train, and has an optimiser
    (AdamW) and a schedule of its own. What was frozen before, and not by `start_stage`, stays frozen in every stage:
    your own encoder, or all but the adapters of peft. Where it runs, and on how many devices, is `accelerate`'s affair
    (`accelerate launch`).

    Afterwards the model holds the weights of the best epoch of the last stage, mixed with those before it where the
    stage says so, is in evaluation mode, and is frozen where it was frozen before.

    Args:
        model: A `PonderWrapper`, or a model of `ponder.integrations.transformers`.
        loader: Training batches, iterated once an epoch: a DataLoader, or a list of batches. A batch is a pair (inputs,
            labels), or a dict with the labels under ``"labels"`` (or ``"label"``, as data sets have them) whose first
            entry is the inputs and the others context. With several processes it has to be a DataLoader without an
            ``__iter__`` of its own, since accelerate makes others of it, which share its batches.
        recipe: A recipe or its name, whose stages and policy are taken instead of the model's own. The model must have
            the heads that it needs.
        epochs: Epochs of each stage, at most.
        held_out: Batches on which each epoch is scored; the best epoch's weights are kept.
        metric: A function from outputs (at the exits, or of one step) and labels, of all held-out rows, to a number,
            the higher the better (with an answer a token, of all labelled tokens). Where None the task's own: the
            accuracy (of tokens or labels where an example has several), or the negative squared error.
        select: By what the best epoch is known: the score at the exits of the policy (``"exits"``), or the mean of the
            scores of all steps (``"steps"``), which does not hang on a threshold that was chosen for other weights.
            Where None it is the steps where each has a head and the stage teaches them all, and else the exits. With
            stages still to come these are all at full depth, unless a stage trains early heads or a Lambda head alone.
            Where the policy looks at nothing that a stage trains (a Lambda head under `LastStep`, say), all epochs
            score alike: they all run, and the last is kept.
        patience: Epochs without a better score that end a stage; None runs all.
        lr: Learning rate of the encoder.
        head_lr: Learning rate of the heads, which are new; `lr` where None.
        lambda_lr: Learning rate of the Lambda head; `lr` where None. `Recipe.own_lambda_lr` says what a recipe's paper
            did, and changes nothing here.
        weight_decay: Weight decay of AdamW on weights; biases and norms are spared.
        warmup: Share of the steps in which the rates rise from 0, in [0, 1).
        schedule: How they fall after that: ``"linear"`` or ``"cosine"`` to 0, or ``"constant"``.
        clip: Largest norm of the gradient; None does not clip.
        bf16: Train under bfloat16 autocast.
        seed: Seed of dropout and of the order of the loader, as far as PyTorch's own generator draws them.
        trackers: What accelerate's `log_with` takes: ``"tensorboard"``, ``"wandb"``, …; losses, expected steps,
            divergences, scores and a histogram of the halting steps go there.
        folder: The folder that trackers write to, if they write files.
        progress: Show a progress bar, on a terminal; nothing is written into files and pipes.
        accelerator: An `accelerate.Accelerator` of your own; `trackers` and `folder` are then its own too.

    Returns:
        What happened in each epoch of each stage.

    Raises:
        ArgumentError: An empty loader, batches without labels, a number out of range, an objective that was assigned
            and that no stage trains, a stage that trains nothing, because all of it was frozen before or its objective
            does not reach it, or a score that is NaN in every epoch of a stage.
        NonFiniteError: A loss or gradient that is NaN or infinite. The weights are those before that step.
        PonderError: accelerate is not installed.

    Example:
        >>> steps = [nn.Linear(8, 8) for _ in range(3)]
        >>> model = PonderWrapper.from_recipe(steps, "palbert", num_outputs=2, example=torch.randn(2, 8))
        >>> report = fit(model, [(torch.randn(4, 8), torch.tensor([0, 1, 1, 0]))], epochs=2)
        >>> len(report.stages[0].epochs), report.score
        (2, None)
    """
    wrapper = model if isinstance(model, PonderWrapper) else getattr(model, "ponder", None)
    if not isinstance(wrapper, PonderWrapper):
        raise ArgumentTypeError(
            "model",
            expected="a PonderWrapper, or a model of ponder.integrations.transformers",
            got=type(model).__name__,
            remedy="Make one: PonderWrapper.from_recipe(model, 'palbert', num_outputs=2, example=batch).",
        )
    getattr(model, "check_trainable", wrapper.check_trainable)()  # what is around it may know of more that is frozen
    options = _Options(epochs, patience, lr, head_lr, lambda_lr, weight_decay, warmup, schedule, clip, bf16)
    options.check()
    if metric is not None and not callable(metric):
        raise ArgumentTypeError(
            "metric",
            expected="a function (outputs, labels) -> number, or None for the task's own score",
            got=repr(metric),
            remedy="Pass lambda outputs, labels: …, say.",
        )
    if select is not None:
        check_choice("select", select, ("exits", "steps"))
    _check_used(metric, select, held_out, trackers, folder, accelerator)
    counted = schedule != "constant" or warmup > 0.0
    _check_loader("loader", loader, "schedule='constant', warmup=0" if counted else None)
    if held_out is not None:
        _check_loader("held_out", held_out, None)
    own = accelerator is None
    accelerator = _accelerator(trackers, folder) if own else accelerator
    if accelerator.gradient_accumulation_steps != 1:
        raise ArgumentError(
            "accelerator",
            expected="gradient_accumulation_steps=1: the optimiser steps once a batch",
            got=accelerator.gradient_accumulation_steps,
            remedy="Pass larger batches, or train with PonderTrainer, which accumulates.",
        )
    if accelerator.mixed_precision == "fp16":
        raise ArgumentError(
            "accelerator",
            expected="mixed_precision='no' or 'bf16': in fp16 losses are scaled, which needs an optimiser of its own",
            got="'fp16'",
            remedy="Pass bf16=True, or train with PonderTrainer and fp16=True.",
        )
    if seed is not None:
        torch.manual_seed(seed)
    if recipe is None:
        wrapper.check_stages("set the wrapper's stages = ()")
    else:
        _take(recipe, model, wrapper)
    stages = wrapper.stages or (Stage(wrapper.objective),)
    _check_teachers(stages, wrapper)
    _tell_of_untrained_hazards(stages, wrapper)
    main_input = getattr(model, "main_input_name", None)
    scored = None if held_out is None else HeldOut(held_out, metric, main_input)
    if scored is not None:
        scored.check(wrapper.policy)
    if own and accelerator.log_with:
        accelerator.init_trackers("ponder", config={**options.as_numbers(), "stages": len(stages)})
    wrapper.thaw_stage()
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    frozen = [parameter for parameter, trained in before.items() if not trained]
    if isinstance(loader, DataLoader) and _may_be_rebuilt(loader):
        loader = accelerator.prepare(loader)
    elif accelerator.num_processes > 1:
        raise ArgumentTypeError(
            "loader",
            expected=f"a DataLoader, whose batches {accelerator.num_processes} processes can share",
            got=f"a {type(loader).__name__}, of which each would train on all"
            + (": it has an __iter__ of its own" if isinstance(loader, DataLoader) else ""),
            remedy="Wrap the data set: torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True). What changes "
            "batches can be its collate_fn.",
        )
    done: list[StageReport] = []
    try:
        with progress_of(progress and accelerator.is_main_process) as bar:
            tracking = Tracking(accelerator)
            for number, stage in enumerate(stages, start=1):
                wrapper.start_stage(stage)
                for parameter in frozen:
                    parameter.requires_grad_(False)
                exits_tell = number == len(stages) or stage.train != "all"  # else full depth cannot change
                policy = wrapper.policy if exits_tell else LastStep()
                title = f"stage {number}/{len(stages)}" if len(stages) > 1 else "fit"
                run = _StageRun(
                    model,
                    wrapper,
                    loader,
                    scored,
                    policy,
                    _by_all_steps(select, stage, wrapper),
                    options,
                    accelerator,
                    bar,
                    tracking,
                    main_input,
                )
                done.append(run.train(stage, title))
    finally:
        if any(stage.teacher == "previous" for stage in stages):
            wrapper.attach_teacher(None)
        wrapper.progress = None
        for parameter, trained in before.items():
            parameter.requires_grad_(trained)
        model.eval()
        wrapper.forget_frozen()
        if own and accelerator.log_with:
            accelerator.end_training()
    return FitReport(tuple(done), None if scored is None else scored.name(wrapper.task))


def _check_used(
    metric: object, select: object, held_out: object, trackers: object, folder: object, accelerator: object
) -> None:
    """Refuse what nothing would read."""
    for argument, given in (("metric", metric), ("select", select)):
        if given is not None and held_out is None:
            raise ArgumentError(
                argument,
                expected="None without held_out, on which alone it is computed",
                got=repr(given),
                remedy="Pass held_out=batches that are not trained on.",
            )
    if accelerator is not None and (trackers is not None or folder is not None):
        raise ArgumentError(
            "accelerator",
            expected="None beside trackers and folder, which an accelerator has of its own",
            got=f"one, with trackers={trackers!r}, folder={folder!r}",
            remedy="Make it so: accelerate.Accelerator(log_with='tensorboard', project_dir=folder).",
        )
    if folder is not None and trackers is None:
        raise ArgumentError(
            "folder",
            expected="None without trackers, which alone write there",
            got=repr(folder),
            remedy="Pass trackers='tensorboard', say; ponder.save(model, folder) keeps the model.",
        )


@dataclass(frozen=True)
class _Options:
    """The numbers of a training; fields as for `fit`."""

    epochs: int
    patience: int | None
    lr: float
    head_lr: float | None
    lambda_lr: float | None
    weight_decay: float
    warmup: float
    schedule: str
    clip: float | None
    bf16: bool

    def check(self) -> None:
        """Refuse what no training can follow; `parameter_groups` looks at the rates."""
        check_int("epochs", self.epochs)
        if self.patience is not None:
            check_int("patience", self.patience)
        check_real("weight_decay", self.weight_decay)
        check_real("warmup", self.warmup, 0.0, 1.0, open_high=True)
        check_choice("schedule", self.schedule, _SCHEDULES)
        if self.clip is not None:
            check_real("clip", self.clip, open_low=True)
        check_flag("bf16", self.bf16)

    def as_numbers(self) -> dict[str, Any]:
        """The fields that trackers are told."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def share(self, step: int, total: int | None) -> float:
        """The share of the learning rates at a step of the optimiser, counted from 0."""
        if total is None:
            return 1.0
        rising = round(self.warmup * total)
        if step < rising:
            return (step + 1) / (rising + 1)
        left = max(total - step, 0) / max(total - rising, 1)  # a loader may give more batches than its length says
        if self.schedule == "constant":
            return 1.0
        return left if self.schedule == "linear" else 0.5 * (1.0 + cos(pi * (1.0 - left)))


class _Best:
    """The best epoch so far, and how many came after it without being better."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self.best, self.since, self.epoch = model, -inf, 0, 0
        self._weights: dict[str, Any] = {}
        self._unsaved: dict[str, Tensor] = {}

    def see(self, epoch: int, score: float) -> None:
        """Keep the weights of this epoch where it is the best, or the first; a score that is NaN is the worst."""
        if score > self.best or not self._weights:
            self.best, self.since, self.epoch = -inf if isnan(score) else score, 0, epoch
            state = self._model.state_dict()
            self._weights = {name: _copied(value) for name, value in state.items()}
            self._unsaved = {name: _copied(value) for name, value in self._model.named_buffers() if name not in state}
        else:
            self.since += 1

    def restore(self) -> None:
        """Bring the best epoch back, where one was seen."""
        if not self._weights:
            return
        self._model.load_state_dict(self._weights)
        for name, buffer in self._model.named_buffers():
            kept = self._unsaved.get(name, buffer).to(buffer.device)
            if kept.shape == buffer.shape and not torch.equal(kept, buffer):  # a cache that has grown goes on
                buffer.copy_(kept)


def _copied(value: Any) -> Any:
    """A copy of an entry of a `state_dict`: a tensor's on the CPU. What `get_extra_state` gives may be anything."""
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)


@dataclass
class _StageRun:
    """One stage: its optimiser, its epochs, and what is told of them."""

    model: nn.Module
    wrapper: PonderWrapper
    loader: Iterable[Any]
    held_out: HeldOut | None
    policy: ExitPolicy
    every_step: bool
    options: _Options
    accelerator: Any
    bar: Bar
    tracking: Tracking
    main_input: str | None
    taught: bool = False
    """Whether a batch had a gradient for something that the stage trains."""

    def train(self, stage: Stage, title: str) -> StageReport:
        """Train, and leave the best epoch in the model, and nothing of accelerate."""
        own = "forward" in vars(self.wrapper)
        prepared = self.accelerator.prepare(self.wrapper)
        try:
            return self._train(prepared, stage, title)
        finally:
            self.accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
            if not own:  # mixed precision puts one around that of the class
                vars(self.wrapper).pop("forward", None)

    def _train(self, prepared: nn.Module, stage: Stage, title: str) -> StageReport:
        started, options = time.perf_counter(), self.options
        length = _length(self.loader)
        total = None if length is None else length * options.epochs
        groups = parameter_groups(self.wrapper, options.lr, options.lambda_lr, options.head_lr, options.weight_decay)
        if not groups:
            raise ArgumentError(
                "model",
                expected=f"something that a stage with train={stage.train!r} may train",
                got="parameters that were all frozen before",
                remedy="Call model.requires_grad_(True), or leave out what should learn when you freeze.",
            )
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        rates = LambdaLR(optimizer, lambda step: options.share(step, total))
        self.bar.stage(title, total)
        epochs, best = list[EpochReport](), _Best(self.wrapper)
        chosen = self.every_step or tells_epochs_apart(self.policy, stage, self.wrapper.num_steps)
        for epoch in range(1, options.epochs + 1):
            where = f"{title}, epoch {epoch}"
            loss, means = self._epoch(prepared, optimizer, rates, total, where)
            early = rates.last_epoch > 1 and "progress" not in stage.objective.needs  # which may teach later
            if stage.train != "all" and not self.taught and (early or epoch == options.epochs):
                raise _teaches_nothing(stage, title)
            found = self._scored()
            epochs.append(
                EpochReport(
                    epoch,
                    loss,
                    means.get("expected_steps"),
                    None if found is None else found.score,
                    None if found is None else found.exit_step,
                    None if found is None else found.score_of_steps,
                )
            )
            score = epochs[-1].chooses
            if score is not None and chosen:
                best.see(epoch, score)
                if options.patience is not None and best.since >= options.patience:
                    break
        if self.held_out is not None:
            if all(epoch.chooses is None or isnan(epoch.chooses) for epoch in epochs):
                raise _no_score(self.held_out, len(epochs), title)
            best.restore()
        self.wrapper.finish_stage(stage)
        mixed = self._scored() if stage.mixing < 1 else None
        return StageReport(
            objective=_told(stage.objective),
            trained=stage.train,
            epochs=tuple(epochs),
            best_epoch=best.epoch or len(epochs),
            seconds=round(time.perf_counter() - started, 3),
            mixed=None if mixed is None else mixed.score,
        )

    def _epoch(
        self, prepared: nn.Module, optimizer: torch.optim.Optimizer, rates: LambdaLR, total: int | None, where: str
    ) -> tuple[float, dict[str, float]]:
        """One pass over the loader: the mean loss, and the means of what was measured."""
        self.model.train()
        losses, means, halting = list[float](), Means(), list[Tensor]()
        labelled = torch.zeros((), dtype=torch.long, device=self.accelerator.device)
        for given in self.loader:
            batch = read_batch(given, self.main_input).to(self.accelerator.device)
            done = rates.last_epoch
            self.wrapper.progress = Progress(done if total is None else min(done, total), total)
            with self._autocast():
                out = prepared(batch.inputs, labels=batch.labels, **batch.context)
            run = out.trajectory  # of training mode, and `read_batch` refuses batches without labels
            of_batch = count_labelled(self.wrapper.task or infer_task(out.outputs, run.labels), run.labels)
            loss = self._step(self._shared(out.loss, of_batch), optimizer, f"{where}, step {len(losses) + 1}")
            seen = measured(self.wrapper, run.outputs.detach(), run.hazard_logits, run.labels)
            labelled += of_batch
            rates.step()
            self.tracking.advance()
            losses.append(loss)
            means.add(seen)
            if run.hazard_logits is not None:
                pmf = run.halting.pmf.detach().mean(0)
                halting.append(nn.functional.pad(pmf, (0, max(self.wrapper.num_steps - len(pmf), 0))))
            expected = {"step": float(seen["expected_steps"].mean())} if "expected_steps" in seen else {}
            self.bar.advance({"loss": loss, **expected})
            if len(losses) % _LOG_EVERY == 1:
                self.tracking.log({"train/loss": loss, "train/lr": float(rates.get_last_lr()[0])})
        if not losses:
            raise _empty("loader")
        if not int(self.accelerator.reduce(labelled, "sum")):
            raise ArgumentError(
                "loader",
                expected="at least one row with a label",
                got=f"none in the {len(losses)} batches of {where}, which taught nothing",
                remedy="Look at what makes the labels: -100 and empty batches count for nothing.",
            )
        means.add({"loss": torch.tensor(losses)})
        taken = means.taken(_gather(self.accelerator))
        mean = taken.pop("loss")
        self.tracking.log({f"train/{name}": value for name, value in taken.items()})
        if halting and len({len(pmf) for pmf in halting}) == 1:
            self.tracking.histogram("halting", torch.stack(halting).mean(0))
        return mean, taken

    def _shared(self, loss: Tensor, labelled: Tensor) -> Tensor:
        """The loss, whose mean over all processes is that over the labelled rows of their batches."""
        processes = self.accelerator.num_processes
        if processes == 1:
            return loss
        return of_joined(loss, labelled, self.accelerator.reduce(labelled, "sum"), processes)

    def _step(self, given: Tensor, optimizer: torch.optim.Optimizer, where: str) -> float:
        """The backward pass and a step of the optimiser; the loss. Nothing moves where a number is not finite."""
        optimizer.zero_grad()
        if given.requires_grad:  # else the objective reads nothing that is trained, in this turn at least
            self.accelerator.backward(given)
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = clip_grad_norm_(trained, inf if self.options.clip is None else self.options.clip)
        loss, size = torch.stack([given.detach().float(), norm.detach().float().to(given.device)]).tolist()
        if not (abs(loss) < inf and size < inf):
            raise NonFiniteError(
                f"{where}: expected a finite loss and gradient; got a loss of {loss:g}, a gradient of norm {size:g}. "
                "The weights are those before this step. Lower the learning rates, look for NaN in the data, or find "
                "the step of the model with check_finite=True."
            )
        optimizer.step()
        self.taught = self.taught or size > 0
        return float(loss)

    def _scored(self) -> Score | None:
        if self.held_out is None:
            return None
        with self._autocast():
            device = self.accelerator.device
            found = self.held_out.score(self.wrapper, self.policy, device, every_step=self.every_step)
        told = {"score": found.score, "exit_step": found.exit_step}
        if found.score_of_steps is not None:
            told["score_of_steps"] = found.score_of_steps
        self.bar.tell(told)
        self.tracking.log({f"held_out/{name}": value for name, value in told.items()})
        self.tracking.histogram("held_out/exits", found.exits)
        return found

    def _autocast(self) -> AbstractContextManager[Any]:
        device = self.accelerator.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.options.bf16)


def _check_teachers(stages: Sequence[Stage], wrapper: PonderWrapper) -> None:
    """Refuse, before anything is trained, a stage that learns from a teacher that is not there."""
    attached = wrapper.has_teacher
    for stage in stages:
        if "teacher" in stage.objective.needs and stage.teacher == "attached" and not attached:
            raise ArgumentError(
                "teacher",
                expected=f"one that is attached, for {stage.objective!r}",
                got="none any more, after a stage that had its own" if wrapper.has_teacher else "none",
                remedy="Call model.attach_teacher(a_frozen_model) before training.",
            )
        attached = attached and stage.teacher != "previous"


def _tell_of_untrained_hazards(stages: Sequence[Stage], wrapper: PonderWrapper) -> None:
    """Warn where the policy reads a Lambda head that can learn, and that no stage teaches."""
    head = wrapper.lambda_head
    if head is None or "hazard" not in wrapper.policy.needs or not any(w.requires_grad for w in head.parameters()):
        return
    if not any("hazard" in stage.objective.needs for stage in stages):
        warnings.warn(
            f"{wrapper.policy!r} leaves by the Lambda head, and no objective of this training reads its hazards: it "
            "stays as it is. Train with objectives.Ponder(0.5), say, or leave by what the outputs tell: "
            "policies.Confidence(0.9).",
            stacklevel=3,
        )


def _told(objective: Objective) -> dict[str, Any]:
    """An objective as JSON, or as Python shows it where it has no name or no JSON; it has been trained with."""
    try:
        return objective.to_dict()
    except PonderError:
        return {"name": repr(objective)}


def _take(recipe: str | Recipe, model: nn.Module, wrapper: PonderWrapper) -> None:
    """The stages and the policy of a recipe, scaled to the model; one around the wrapper saves the policy too."""
    chosen = recipes.get(recipe) if isinstance(recipe, str) else recipe
    check_type("recipe", chosen, Recipe)
    scaled = chosen.for_steps(wrapper.num_steps).for_task(wrapper.spec.task)
    prior = scaled.prior if scaled.prior is not None and wrapper.lambda_head is not None else wrapper.prior
    check_made_for(scaled, wrapper.head)
    for stage in scaled.stages:
        check_heads(stage, wrapper.head, wrapper.lambda_head)
        stage.objective.check(has_hazard=wrapper.lambda_head is not None, has_prior=prior is not None)
        stage.objective.check_task(wrapper.spec.task)
    wrapper.prior = prior
    owner: Any = next((module for module in model.modules() if module._modules.get("ponder") is wrapper), wrapper)
    owner.policy = scaled.policy
    wrapper.stages = scaled.stages
    if hasattr(owner, "note_recipe"):
        owner.note_recipe(scaled)


def _accelerator(trackers: str | Sequence[Any] | None, folder: str | PathLike[str] | None) -> Any:
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise PonderError("ponder.fit needs accelerate: pip install 'ponder-torch[train]'.") from error
    named = [trackers] if isinstance(trackers, str) else list(trackers or ())
    if "tensorboard" in named and folder is None:
        raise ArgumentError(
            "folder",
            expected="a folder, into which TensorBoard's files are written",
            got="None",
            remedy="Pass folder='runs', say, or no trackers.",
        )
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    return Accelerator(log_with=named or None, project_dir=folder, kwargs_handlers=handlers)


def _gather(accelerator: Any) -> Callable[[list[Any]], list[Any]]:
    """A function from a list of what this process has seen to the list of what all processes have."""
    if accelerator.num_processes == 1:
        return list
    from accelerate.utils import gather_object

    found: Callable[[list[Any]], list[Any]] = gather_object
    return found


def _check_loader(argument: str, loader: Iterable[Any], remedy: str | None) -> None:
    """Refuse what cannot be iterated again and again, and what is empty."""
    if not isinstance(loader, Iterable) or isinstance(loader, Mapping | Tensor | Iterator):
        raise ArgumentTypeError(
            argument,
            expected="batches that can be iterated once an epoch: a DataLoader, or a list of batches",
            got=f"a {type(loader).__name__}" + (", which can be iterated once" if isinstance(loader, Iterable) else ""),
            remedy="Wrap the data set: torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True).",
        )
    length = _length(loader)
    if length == 0:
        raise _empty(argument)
    if length is None and remedy is not None:
        raise ArgumentError(
            argument,
            expected="batches that can be counted, by which the learning rates rise and fall",
            got=f"a {type(loader).__name__} without a length",
            remedy=f"Pass {remedy}.",
        )


def _length(loader: Iterable[Any]) -> int | None:
    """How many batches there are; None where that is not known."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # of an iterable data set without a length
        return None


def _may_be_rebuilt(loader: DataLoader[Any]) -> bool:
    """Whether another DataLoader of the same data set and sampler, as accelerate makes, gives the same batches."""
    home: str = type(loader).__iter__.__module__
    return home.partition(".")[0] in ("torch", "torchdata", "accelerate")


def _by_all_steps(select: str | None, stage: Stage, wrapper: PonderWrapper) -> bool:
    """Whether the mean of the scores of all steps tells a stage's epochs apart, and is to."""
    if select == "exits" or stage.train == "lambda_head":  # which changes no step's answer
        return False
    return select == "steps" or (isinstance(wrapper.head, PerStep) and stage.objective.teaches_all_steps)


def _teaches_nothing(stage: Stage, where: str) -> ArgumentError:
    return ArgumentError(
        "objective",
        expected=f"one that teaches something of what a stage with train={stage.train!r} trains",
        got=f"{stage.objective!r}, which had no gradient for any of it in {where}",
        remedy="Train early heads with objectives.DeepSupervision('uniform'), say, and a Lambda head with "
        "objectives.Ponder(0.5).",
    )


def _no_score(held_out: HeldOut, epochs: int, where: str) -> ArgumentError:
    return ArgumentError(
        "held_out" if held_out.metric is None else "metric",
        expected="a score that is a number in some epoch, by which the best is kept",
        got=f"NaN in all {epochs} epochs of {where}",
        remedy="Look for NaN in labels and outputs, and for what the metric divides by. The weights are those of the "
        "last epoch.",
    )


def _empty(argument: str) -> ArgumentError:
    return ArgumentError(
        argument, expected="at least one batch", got="none", remedy="Look at the data set, and at drop_last."
    )
