"""`StageRun`: the epochs of one stage of `ponder.fit`, on `accelerate`.

An epoch is a pass over the loader (`_epoch`), with a step of the optimiser for each batch
(`_step`). If there is held-out data, each epoch is scored, and the weights of the best one are
kept.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sized
from dataclasses import dataclass, replace
from math import inf, isnan
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from ponder._utils.checks import library
from ponder._utils.modes import evaluating
from ponder._utils.trees import map_tensors
from ponder.errors import ArgumentError, NonFiniteError, PonderError
from ponder.fitting.parameters import ParameterGroup
from ponder.fitting.reports import EpochReport
from ponder.fitting.trained import Trained
from ponder.loops.loop import LoopOutput
from ponder.model.batch import Batch, read_batch
from ponder.objectives import Progress
from ponder.policies import ExitPolicy
from ponder.wrapper import PonderOutput

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["StageRun", "UserBatch", "joined_loss", "make_accelerator", "shared_loader"]

UserBatch: TypeAlias = Any
"""A batch in one of the forms of `ponder.model.batch`."""


@dataclass
class StageRun:
    """One stage of `fit`: its optimiser, its epochs, and the best of them.

    Args:
        model: The model of the user.
        trained: The part of it that is trained, and its scores.
        accelerator: Decides on devices, precision and processes.
        loader: Training batches.
        groups: Groups of parameters.
        epochs: Number of epochs.
        warmup: Share of the steps in which the rates rise from 0.
        clip: Largest norm of the gradient; None does not clip.
    """

    model: nn.Module
    trained: Trained
    accelerator: Accelerator
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

    def _shared(self, out: PonderOutput | LoopOutput) -> Tensor:
        """Return the loss, weighted so that its mean over processes is that over labelled rows."""
        assert out.loss is not None  # a batch without labels was refused
        processes = self.accelerator.num_processes
        if processes == 1:
            return out.loss
        assert out.trajectory is not None
        labelled = out.trajectory.meaning.labelled(out.trajectory.labels).sum()
        total = self.accelerator.reduce(labelled, "sum")
        return joined_loss(out.loss, labelled, total, processes)

    def _step(self, loss: Tensor, where: str) -> float:
        """Make a step of the optimiser, and return the loss.

        Raises:
            NonFiniteError: The loss or the gradient is not finite.
        """
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        weights: list[nn.Parameter] = []
        for group in self.groups:
            weights += group["params"]
        clip = inf  # the norm is computed all the same
        if self.clip is not None:
            clip = self.clip
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
                scored = self.trained.score(self._on_device(batch), policy)
                scores.append(scored.scores)
                exits.append(scored.exit_step)
        return float(torch.cat(scores).mean()), float(torch.cat(exits).double().mean())


def joined_loss(loss: Tensor, labelled: Tensor, total: Tensor, parts: int) -> Tensor:
    """Weight the loss of a part of a batch, so that the mean over parts is that over rows.

    Parts of as many labelled rows (`labelled`, of `total` in all) keep their losses to the last
    bit.
    """
    return loss * ((labelled * parts).to(loss.dtype) / total.clamp(min=1))


def shared_loader(loader: Iterable[UserBatch], accelerator: Accelerator) -> Iterable[UserBatch]:
    """Return a loader whose batches all processes share.

    Raises:
        ArgumentError: There are several processes, and batches that they cannot share.
    """
    if isinstance(loader, DataLoader):
        prepared: Iterable[UserBatch] = accelerator.prepare(loader)
        return prepared
    if accelerator.num_processes > 1:
        raise ArgumentError(
            "loader",
            expected=f"a DataLoader, whose batches {accelerator.num_processes} processes can share",
            got=f"a {type(loader).__name__}, of which each would train on all",
            remedy="Wrap the data set: "
            "torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True).",
        )
    return loader


def make_accelerator() -> Accelerator:
    """Return the object of accelerate that decides on devices, precision and processes."""
    accelerate = library("accelerate", "ponder.fit", "train")
    # Objectives that draw steps, and early stages, leave some parameters without a gradient.
    accelerator: Accelerator = accelerate.Accelerator(
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != accelerator.num_processes:
        raise PonderError(
            f"ponder.fit: {started} processes were started, and accelerate trains "
            f"in {accelerator.num_processes}: each would train alone. Start them with accelerate "
            "launch."
        )
    return accelerator
