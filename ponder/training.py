"""Training: all stages of a recipe on `accelerate`, and single stages for other trainers.

`fit` runs each stage by a `StageRun`, inside `run_stage`, which sets the objective and the teacher
of the stage and freezes the parameters that it does not train. Trainers of other libraries use
`run_stage` and `parameter_groups` alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ponder._utils.checks import check_int, check_real
from ponder.fitting.parameters import freeze, parameter_groups
from ponder.fitting.reports import EpochReport, FitReport
from ponder.fitting.stage_run import (
    StageRun,
    UserBatch,
    joined_loss,
    make_accelerator,
    shared_loader,
)
from ponder.fitting.trained import LoopModel, WrappedModel
from ponder.loops import Loop
from ponder.policies import ExitPolicy, LastStep
from ponder.recipes import Stage
from ponder.wrapper import PonderWrapper

__all__ = ["EpochReport", "FitReport", "fit", "joined_loss", "parameter_groups", "run_stage"]


def fit(
    model: nn.Module,
    loader: Iterable[UserBatch],
    *,
    epochs: int = 3,
    lr: float = 5e-5,
    head_lr: float | None = 1e-3,
    lambda_lr: float | None = None,
    held_out: Iterable[UserBatch] | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.1,
    clip: float | None = 1.0,
    seed: int | None = None,
) -> FitReport:
    """Train a model through every stage of its recipe; needs the extra ``train``.

    The stages are `PonderWrapper.stages`: those of the recipe, or one with the model's objective.
    Each freezes the parts that it does not train, with a new optimiser (AdamW) and schedule.
    `accelerate` decides on devices, precision and the number of processes (``accelerate launch``,
    ``torchrun``).

    A `ponder.loops.Loop` has one stage, with the objective of its calls. A module that holds a loop
    is itself called, ``model(inputs, labels=…, **context)``, and returns the loop's output; the
    score of held-out data is minus the loss at the exits.

    Afterwards the model is in evaluation mode, and the same parameters are frozen as before.

    Args:
        model: A `PonderWrapper`, a `ponder.loops.Loop`, or a module that holds one.
        loader: Training batches, iterated once an epoch: a DataLoader (several processes share its
            batches), or a list. A batch is ``(inputs, labels)``, ``(inputs, mask, labels)`` with
            context in the order in which the model takes it, ``(inputs, {"mask": mask}, labels)``,
            or a dict by names with the labels under ``"labels"`` (see `ponder.model.batch`); the
            context of a loop has `max_steps`. `ponder.predict` and `record` take the same
            `DataLoader`.
        epochs: Epochs of each stage.
        lr: Learning rate of the encoder.
        head_lr: Learning rate of the heads, which are new; `lr` if None.
        lambda_lr: Learning rate of the Lambda head; `lr` if None.
        held_out: Batches on which each epoch is scored; the best epoch's weights are kept.
        weight_decay: Weight decay of AdamW on weights; biases and norms are spared.
        warmup: Share of the steps in which the rates rise from 0, in [0, 1), before they fall to 0
            again.
        clip: Largest norm of the gradient; None does not clip.
        seed: Seed of PyTorch's generator, which draws dropout and the order of the loader.

    Raises:
        ArgumentError: Batches have no labels, a number is out of range, or a stage would train
            nothing.
        NonFiniteError: A loss or gradient is NaN or infinite. The weights are those before that
            step.
        PonderError: accelerate is not installed.

    Example:
        >>> steps = [nn.Linear(8, 8) for _ in range(3)]
        >>> example = torch.randn(2, 8)
        >>> model = PonderWrapper.from_recipe(steps, "palbert", num_outputs=2, example=example)
        >>> report = ponder.fit(model, [(torch.randn(4, 8), torch.tensor([0, 1, 1, 0]))], epochs=2)
        >>> len(report.epochs)
        2
    """
    check_int("epochs", epochs)
    check_real("warmup", warmup, 0.0, 1.0, open_high=True)
    halting = next(part for part in model.modules() if isinstance(part, PonderWrapper | Loop))
    if seed is not None:
        torch.manual_seed(seed)
    accelerator = make_accelerator()
    loader = shared_loader(loader, accelerator)
    rates = (lr, lambda_lr, head_lr, weight_decay)
    reports: list[EpochReport] = []
    try:
        if isinstance(halting, Loop):
            groups = parameter_groups(model, *rates)
            trained = LoopModel(model, halting)
            run = StageRun(model, trained, accelerator, loader, groups, epochs, warmup, clip)
            reports += run.train(1, held_out, halting.policy)
            return FitReport(tuple(reports))
        stages = halting.stages
        for number, stage in enumerate(stages, start=1):
            with run_stage(halting, stage):
                groups = parameter_groups(halting, *rates)
                wrapped = WrappedModel(halting)
                run = StageRun(model, wrapped, accelerator, loader, groups, epochs, warmup, clip)
                # A later stage that trains everything will move the exits, so full depth is scored.
                # Early heads and Lambda heads are trained for the exits, and are scored there.
                is_last = number == len(stages)
                policy: ExitPolicy = LastStep()
                if is_last or stage.train != "all":
                    policy = halting.policy
                reports += run.train(number, held_out, policy)
    finally:
        halting.progress = None
        model.eval()
    return FitReport(tuple(reports))


@contextmanager
def run_stage(model: PonderWrapper, stage: Stage) -> Iterator[None]:
    """Train one stage inside the block, with its objective and teacher, and other parts frozen.

    After the block the teacher, the stages and the frozen parameters are as before.

    Args:
        model: The model.
        stage: The stage.

    Raises:
        ArgumentError: The stage trains parts that the model does not have, or that were frozen
            before.

    Example:
        >>> steps = [nn.Linear(8, 8) for _ in range(3)]
        >>> example = torch.randn(2, 8)
        >>> model = PonderWrapper.from_recipe(steps, "deebert", num_outputs=2, example=example)
        >>> with ponder.training.run_stage(model, model.stages[1]):  # it trains early heads
        ...     all(weight.requires_grad for weight in model.head.heads[0].parameters())
        ...     model.objective
        True
        DeepSupervision(weights='uniform')
    """
    stages = model.stages
    teacher = model.teacher
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        if stage.teacher == "previous":
            model.teacher = None  # or the copy would hold a copy of the teacher before it
            model.teacher = copy.deepcopy(model).requires_grad_(False)
        model.stages = (stage,)
        freeze(model, stage)
        yield
    finally:
        for weight in trainable:
            weight.requires_grad_(True)
        model.stages = stages
        model.teacher = teacher
        model.progress = None
