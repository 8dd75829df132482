"""Training: all stages of a recipe on `accelerate`, and single stages for other trainers."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf, isnan
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from ponder._utils.checks import check_int, check_real, library
from ponder._utils.modes import evaluating
from ponder._utils.trees import map_tensors
from ponder.errors import ArgumentError, NonFiniteError, PonderError
from ponder.loops import Loop
from ponder.model.batch import ArgumentNames, Batch, read_batch
from ponder.model.heads import PerStep
from ponder.objectives import Progress
from ponder.policies import ExitPolicy, LastStep
from ponder.recipes import Stage
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderWrapper

__all__ = ["EpochReport", "FitReport", "fit", "joined_loss", "parameter_groups", "run_stage"]

ParameterGroup: TypeAlias = dict[str, Any]
"""A group of parameters, as the optimisers of PyTorch take it."""
UserBatch: TypeAlias = Any
"""A batch in one of the forms of `ponder.model.batch`."""


@dataclass(frozen=True)
class EpochReport:
    """Result of one epoch of training.

    Args:
        stage: Number of the stage, from 1.
        epoch: Number of the epoch in its stage, from 1.
        loss: Mean training loss over the batches.
        score: Score on the held-out data, the higher the better; None without such data.
        exit_step: Mean exit step there.
        kept: Whether its weights were kept at the end of the stage: the best on held-out data, or
            the last.
    """

    stage: int
    epoch: int
    loss: float
    score: float | None = None
    exit_step: float | None = None
    kept: bool = False


@dataclass(frozen=True)
class FitReport:
    """Results of all epochs of a training. `str(report)` is a short table.

    Args:
        epochs: Each epoch of each stage, in order.

    Example:
        >>> from ponder.training import EpochReport, FitReport
        >>> print(FitReport((EpochReport(1, 1, loss=0.7, score=0.81, exit_step=3.2, kept=True),)))
        stage 1, epoch 1: loss 0.7000, score 0.8100 at step 3.20 (kept)
    """

    epochs: tuple[EpochReport, ...]

    @property
    def score(self) -> float | None:
        """The held-out score of the weights that were kept last."""
        return next(epoch.score for epoch in reversed(self.epochs) if epoch.kept)

    def __str__(self) -> str:
        lines = []
        for epoch in self.epochs:
            line = f"stage {epoch.stage}, epoch {epoch.epoch}: loss {epoch.loss:.4f}"
            if epoch.score is not None:
                line += f", score {epoch.score:.4f} at step {epoch.exit_step:.2f}"
            if epoch.kept:
                line += " (kept)"
            lines.append(line)
        return "\n".join(lines)


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
    accelerator = _accelerator()
    loader = _shared_loader(loader, accelerator)
    rates = (lr, lambda_lr, head_lr, weight_decay)
    reports: list[EpochReport] = []
    try:
        if isinstance(halting, Loop):
            groups = parameter_groups(model, *rates)
            trained = _LoopModel(model, halting)
            run = _StageRun(model, trained, accelerator, loader, groups, epochs, warmup, clip)
            reports += run.train(1, held_out, halting.policy)
            return FitReport(tuple(reports))
        stages = halting.stages
        for number, stage in enumerate(stages, start=1):
            with run_stage(halting, stage):
                groups = parameter_groups(halting, *rates)
                wrapped = _WrappedModel(halting)
                run = _StageRun(model, wrapped, accelerator, loader, groups, epochs, warmup, clip)
                # If a later stage trains everything, it will move the exits, so full depth is
                # scored. Early heads and Lambda heads are trained for the exits, and are scored
                # there.
                is_last = number == len(stages)
                policy: ExitPolicy = LastStep()
                if is_last or stage.train != "all":
                    policy = halting.policy
                reports += run.train(number, held_out, policy)
    finally:
        halting.progress = None
        model.eval()
    return FitReport(tuple(reports))


def _shared_loader(loader: Iterable[UserBatch], accelerator: Any) -> Iterable[UserBatch]:
    """Return a loader whose batches all processes share.

    Raise if several processes cannot share it.
    """
    if isinstance(loader, DataLoader):
        return accelerator.prepare(loader)  # type: ignore[no-any-return]
    if accelerator.num_processes > 1:
        raise ArgumentError(
            "loader",
            expected=f"a DataLoader, whose batches {accelerator.num_processes} processes can share",
            got=f"a {type(loader).__name__}, of which each would train on all",
            remedy="Wrap the data set: "
            "torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True).",
        )
    return loader


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
        _freeze(model, stage)
        yield
    finally:
        for weight in trainable:
            weight.requires_grad_(True)
        model.stages = stages
        model.teacher = teacher
        model.progress = None


def parameter_groups(
    model: nn.Module,
    lr: float,
    lambda_lr: float | None = None,
    head_lr: float | None = None,
    weight_decay: float | None = None,
) -> list[ParameterGroup]:
    """Return parameter groups of the encoder, the heads and the Lambda head for an optimiser.

    New heads on a pretrained encoder learn best at a rate some twenty times that of the encoder;
    PALBERT trains the Lambda head with another one (Section 3.2).

    Args:
        model: A `PonderWrapper`, a `ponder.loops.Loop`, or any module that holds one.
        lr: Learning rate of all other parameters.
        lambda_lr: Learning rate of the Lambda head and of a learned prior; `lr` if None.
        head_lr: Learning rate of the heads; `lr` if None.
        weight_decay: Weight decay; if given, each group comes in two with this key: the weights,
            and, with 0, parameters of fewer than two dimensions (biases and norms).

    Returns:
        Groups with `params`, `lr` and `name` (``"model"``, ``"head"``, ``"lambda"``); a group
        without parameters is left out.

    Example:
        >>> model = PonderWrapper(
        ...     nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2), lambda_head=LambdaHead(4)
        ... )
        >>> groups = ponder.parameter_groups(model, lr=1e-4, lambda_lr=5e-5)
        >>> sorted({group["lr"] for group in groups})
        [5e-05, 0.0001]
    """
    rates = {"model": lr, "head": head_lr, "lambda": lambda_lr}
    owner_of = _owners(model)
    by_owner: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for weight in model.parameters():
        if weight.requires_grad:
            by_owner[owner_of.get(id(weight), "model")].append(weight)
    groups: list[ParameterGroup] = []
    for name, rate in rates.items():
        if rate is None:
            rate = lr
        weights = by_owner[name]
        if weight_decay is None:
            groups.append({"name": name, "lr": rate, "params": weights})
        else:
            groups += _decayed_and_spared({"name": name, "lr": rate}, weights, weight_decay)
    return [group for group in groups if group["params"]]


def _decayed_and_spared(
    settings: ParameterGroup, weights: Sequence[nn.Parameter], weight_decay: float
) -> list[ParameterGroup]:
    """Return the group of the weights that decay, and that of biases and norms, which do not."""
    decayed = [weight for weight in weights if weight.dim() > 1]
    spared = [weight for weight in weights if weight.dim() < 2]
    return [
        {**settings, "params": decayed, "weight_decay": weight_decay},
        {**settings, "params": spared, "weight_decay": 0.0},
    ]


def _owners(model: nn.Module) -> dict[int, str]:
    """Return the group of each parameter of a head, ``"head"`` or ``"lambda"``, by its id."""
    owners: dict[int, str] = {}
    for halting in model.modules():
        if isinstance(halting, PonderWrapper | Loop):
            owners |= {id(weight): "head" for weight in halting.head.parameters()}
            for part in _halting_parts(halting):
                owners |= {id(weight): "lambda" for weight in part.parameters()}
    return owners


def _halting_parts(model: PonderWrapper | Loop) -> list[nn.Module]:
    """Return the Lambda head and the weights of a learned prior, if there are such."""
    parts = (model.lambda_head, model.prior_weights)
    return [part for part in parts if part is not None]


class _Trained(Protocol):
    """The model of a stage: the module that is called, its progress, and scores of batches."""

    called: nn.Module
    names: ArgumentNames

    def set_progress(self, progress: Progress) -> None:
        """Set the progress of training, for objectives that depend on it."""

    def score(self, batch: Batch, policy: ExitPolicy) -> tuple[Tensor, Tensor]:
        """Return scores and exit steps, `(rows,)` each; of a loop, one for each position."""


class _WrappedModel:
    """A `PonderWrapper` in training; rows are scored by replay of a full-depth run.

    With a head at each step the score is the mean over all steps, since a threshold may not suit
    new weights. With a shared head, and under `LastStep`, it is the score at the exits.
    """

    def __init__(self, wrapper: PonderWrapper) -> None:
        self.called: nn.Module = wrapper
        self.wrapper = wrapper
        self.names = wrapper.argument_names

    def set_progress(self, progress: Progress) -> None:
        """Set the progress of the wrapper."""
        self.wrapper.progress = progress

    def score(self, batch: Batch, policy: ExitPolicy) -> tuple[Tensor, Tensor]:
        """Return the score and the exit step of each row."""
        keep_features = "features" in policy.needs
        trajectory = self.wrapper.unroll(
            batch.inputs, labels=batch.labels, keep_features=keep_features, **batch.context
        )
        exit_step = trajectory.replay(policy).exit_step.cpu()
        table = _score_of_steps(trajectory)
        if isinstance(self.wrapper.head, PerStep) and not isinstance(policy, LastStep):
            return table.mean(1), exit_step
        return table[torch.arange(len(table)), exit_step - 1], exit_step


class _LoopModel:
    """A loop in training, or a module around it; the score is minus the loss at the exits."""

    def __init__(self, called: nn.Module, loop: Loop) -> None:
        self.called = called
        self.names = ArgumentNames.of_call(called)
        self.loop = loop

    def set_progress(self, progress: Progress) -> None:
        """Set the progress of the loop."""
        self.loop.progress = progress

    def score(self, batch: Batch, policy: ExitPolicy) -> tuple[Tensor, Tensor]:
        """Return the score and the exit step of each real position under the loop's policy."""
        out = self.called(batch.inputs, labels=batch.labels, **batch.context)
        exit_step = out.exit_step[out.exit_step > 0].cpu()
        return -out.loss.cpu().expand(exit_step.shape), exit_step


@dataclass
class _StageRun:
    """One stage of `fit`: its optimiser, its epochs, and the best of them."""

    model: nn.Module
    trained: _Trained
    accelerator: Any
    loader: Iterable[UserBatch]
    groups: list[ParameterGroup]
    epochs: int
    warmup: float
    clip: float | None
    total: int | None = None
    """The number of steps of the optimiser; None if the loader has no length."""

    def train(
        self, number: int, held_out: Iterable[UserBatch] | None, policy: ExitPolicy
    ) -> list[EpochReport]:
        """Train, and leave the best epoch's weights in the model, without traces of accelerate."""
        if isinstance(self.loader, Sized):
            self.total = len(self.loader) * self.epochs
        optimizer = torch.optim.AdamW(self.groups, weight_decay=0.0)
        self.rates = LambdaLR(optimizer, self._rate)
        has_plain_forward = "forward" not in vars(self.trained.called)
        prepared = self.accelerator.prepare(self.trained.called, optimizer)
        self.prepared, self.optimizer = prepared
        reports: list[EpochReport] = []
        best_score = -inf
        best_weights = None
        best_epoch = self.epochs
        try:
            for epoch in range(1, self.epochs + 1):
                loss = self._epoch(f"stage {number}, epoch {epoch}")
                report = EpochReport(number, epoch, loss)
                if held_out is not None:
                    score, exit_step = self._score(held_out, policy)
                    report = replace(report, score=score, exit_step=exit_step)
                    if best_weights is None or score > best_score:
                        best_score = -inf if isnan(score) else score
                        best_epoch = epoch
                        best_weights = copy.deepcopy(self.trained.called.state_dict())
                reports.append(report)
        finally:
            self.accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
            if has_plain_forward:  # mixed precision leaves a `forward` on the instance
                vars(self.trained.called).pop("forward", None)
        if best_weights is not None:
            self.trained.called.load_state_dict(best_weights)
        return [replace(report, kept=report.epoch == best_epoch) for report in reports]

    def _rate(self, step: int) -> float:
        """Return the share of the learning rates at a step of the optimiser, counted from 0."""
        if self.total is None:
            return 1.0
        rising = round(self.warmup * self.total)
        if step < rising:
            return (step + 1) / (rising + 1)
        return max(self.total - step, 0) / max(self.total - rising, 1)

    def _epoch(self, where: str) -> float:
        """Make one pass over the loader, and return the mean loss."""
        self.model.train()
        losses: list[float] = []
        for batch in self.loader:
            read = self._on_device(batch)
            if self.total is not None:
                done = min(self.rates.last_epoch, self.total)
                self.trained.set_progress(Progress(done, self.total))
            with self.accelerator.autocast():
                out = self.prepared(read.inputs, labels=read.labels, **read.context)
            losses.append(self._step(self._shared(out), f"{where}, step {len(losses) + 1}"))
            self.rates.step()
        if not losses:
            remedy = "Pass a list, or a DataLoader."
            raise ArgumentError("loader", expected="at least one batch", got="none", remedy=remedy)
        return sum(losses) / len(losses)

    def _on_device(self, batch: UserBatch) -> Batch:
        """Return a batch with its tensors on the device of the model."""
        read = read_batch(batch, self.trained.names).labelled()
        device = self.accelerator.device
        parts = (read.inputs, read.context, read.labels)
        return Batch(*map_tensors(lambda tensor: tensor.to(device), parts))

    def _shared(self, out: Any) -> Tensor:
        """Return the loss, weighted so that its mean over processes is that over labelled rows."""
        processes: int = self.accelerator.num_processes
        if processes == 1:
            return out.loss  # type: ignore[no-any-return]
        labelled = out.trajectory.meaning.labelled(out.trajectory.labels).sum()
        return joined_loss(out.loss, labelled, self.accelerator.reduce(labelled, "sum"), processes)

    def _step(self, loss: Tensor, where: str) -> float:
        """Make a step of the optimiser and return the loss.

        Raise if loss or gradient are not finite.
        """
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        weights: list[nn.Parameter] = []
        for group in self.groups:
            weights += group["params"]
        clip = self.clip
        if clip is None:
            clip = inf  # the norm is computed all the same
        norm = float(self.accelerator.clip_grad_norm_(weights, clip))
        value = float(loss.item())
        # With a gradient scaler an infinite gradient is usual: it skips the step, and lowers its
        # scale.
        finite_gradient = norm < inf or self.accelerator.scaler is not None
        if not (abs(value) < inf and finite_gradient):
            raise NonFiniteError(
                f"{where}: expected a finite loss and gradient; got a loss of {value:g}, a "
                f"gradient of norm {norm:g}. The weights are those before this step. Lower the "
                "learning rates, or look for NaN in the data."
            )
        self.optimizer.step()
        return value

    def _score(self, held_out: Iterable[UserBatch], policy: ExitPolicy) -> tuple[float, float]:
        """Return the score of held-out data, and the mean exit step."""
        scores: list[Tensor] = []
        exits: list[Tensor] = []
        with evaluating(self.trained.called), self.accelerator.autocast():
            for batch in held_out:
                score, exit_step = self.trained.score(self._on_device(batch), policy)
                scores.append(score)
                exits.append(exit_step)
        return float(torch.cat(scores).mean()), float(torch.cat(exits).double().mean())


def _score_of_steps(trajectory: Trajectory) -> Tensor:
    """Return the score of each row at each step, `(rows, steps)`; without one, minus the loss."""
    if trajectory.meaning.metric is not None:
        return torch.as_tensor(trajectory.score_table())
    labels = torch.as_tensor(trajectory.labels)
    losses: Tensor = trajectory.meaning.step_losses(trajectory.outputs, labels)
    return -losses.cpu()


def joined_loss(loss: Tensor, labelled: Tensor, total: Tensor, parts: int) -> Tensor:
    """Weight the loss of a part of a batch, so that the mean over parts is that over rows.

    Parts of as many labelled rows (`labelled`, of `total` in all) keep their losses to the last
    bit.
    """
    return loss * ((labelled * parts).to(loss.dtype) / total.clamp(min=1))


def _accelerator() -> Any:
    accelerate = library("accelerate", "ponder.fit", "train")
    # Objectives that draw steps, and early stages, leave some parameters without a gradient.
    accelerator = accelerate.Accelerator(
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if int(os.environ.get("WORLD_SIZE", 1)) != accelerator.num_processes:
        raise PonderError(
            f"ponder.fit: {os.environ['WORLD_SIZE']} processes were started, and accelerate trains "
            f"in {accelerator.num_processes}: each would train alone. Start them with accelerate "
            "launch."
        )
    return accelerator


def _freeze(model: PonderWrapper, stage: Stage) -> None:
    """Freeze the parameters that the stage does not train.

    A parameter that a trained part shares with a frozen one is frozen too.
    """
    moving = _trained_weights(model, stage)
    if not moving:
        raise ArgumentError(
            "stage",
            expected=f"something that a stage with train={stage.train!r} may train",
            got="a model without such a part, or all of it frozen before",
            remedy="Early heads need head=ponder.PerStep([…]), a Lambda head "
            "lambda_head=ponder.LambdaHead(width); or call model.requires_grad_(True).",
        )
    for weight in model.parameters():
        if id(weight) not in moving:
            weight.requires_grad_(False)


def _trained_weights(model: PonderWrapper, stage: Stage) -> set[int]:
    """Return the identities of the parameters that a stage trains and that may learn."""
    if stage.train == "all":
        return _identities([model])
    early_heads: list[nn.Module] = []
    last_head = model.head
    if isinstance(model.head, PerStep):
        *early_heads, last_head = model.head.heads
    halting = _halting_parts(model)
    encoder = [model.stem, model.steps, model.readout, last_head]
    if stage.train == "early_heads":
        return _identities(early_heads) - _identities([*encoder, *halting])
    return _identities(halting) - _identities([*encoder, *early_heads])


def _identities(parts: Iterable[nn.Module | None]) -> set[int]:
    """Return the identities of the parameters of some parts that are not frozen."""
    identities: set[int] = set()
    for part in parts:
        if part is not None:
            identities |= {id(weight) for weight in part.parameters() if weight.requires_grad}
    return identities
