"""`fit`: all stages of a recipe on `accelerate`, with early stopping on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ponder import recipes
from ponder._utils.validation import check_choice, check_type
from ponder.errors import ArgumentError, ArgumentTypeError, PonderError
from ponder.parts.heads import PerStep
from ponder.policies import LastStep
from ponder.recipes import Recipe, Stage
from ponder.recipes.staging import check_heads, check_made_for
from ponder.training.batches import read_batch
from ponder.training.hazards import tell_of_untrained_hazards
from ponder.training.loaders import check_loader, may_be_rebuilt
from ponder.training.options import Options
from ponder.training.report import FitReport, StageReport
from ponder.training.scoring import HeldOut
from ponder.training.stage import StageRun
from ponder.training.tracking import Tracking, progress_of
from ponder.wrapper import PonderWrapper

__all__ = ["fit"]


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
    stage says so, is in evaluation mode, and is frozen where it was frozen before. Its objective is that of the first
    stage again, with which any training but `fit` then goes on, and warns where there are several.

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
    options = Options(epochs, patience, lr, head_lr, lambda_lr, weight_decay, warmup, schedule, clip, bf16)
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
    check_loader("loader", loader, "schedule='constant', warmup=0" if counted else None)
    if held_out is not None:
        check_loader("held_out", held_out, None)
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
    tell_of_untrained_hazards([stage.objective for stage in stages], wrapper)
    main_input = getattr(model, "main_input_name", None)
    scored = None if held_out is None else HeldOut(held_out, metric, main_input)
    if scored is not None:
        scored.check(wrapper.policy)
    if isinstance(loader, list | tuple):
        for batch in loader:
            read_batch(batch, main_input)
    if own and accelerator.log_with:
        accelerator.init_trackers("ponder", config={**options.as_numbers(), "stages": len(stages)})
    wrapper.thaw_stage()
    if isinstance(loader, DataLoader) and may_be_rebuilt(loader):
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
                exits_tell = number == len(stages) or stage.train != "all"  # else full depth cannot change
                policy = wrapper.policy if exits_tell else LastStep()
                title = f"stage {number}/{len(stages)}" if len(stages) > 1 else "fit"
                run = StageRun(
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
        wrapper.leave_stages()
        model.eval()
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


def _by_all_steps(select: str | None, stage: Stage, wrapper: PonderWrapper) -> bool:
    """Whether the mean of the scores of all steps tells a stage's epochs apart, and is to."""
    if select == "exits" or stage.train == "lambda_head":  # which changes no step's answer
        return False
    return select == "steps" or (isinstance(wrapper.head, PerStep) and stage.objective.teaches_all_steps)
