"""One stage of a training: its optimiser, its epochs, and what is told of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf, isnan
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

from ponder.engine.losses import count_labelled, of_joined
from ponder.errors import ArgumentError, NonFiniteError, PonderError
from ponder.objectives import Objective, Progress
from ponder.optim import may_fuse, parameter_groups
from ponder.parts.tasks import infer_task
from ponder.policies import ExitPolicy
from ponder.recipes import Stage
from ponder.recipes.staging import tells_epochs_apart
from ponder.training.batches import read_batch
from ponder.training.best import Best
from ponder.training.loaders import empty_loader, length_of
from ponder.training.measured import Means, measured
from ponder.training.options import Options
from ponder.training.report import EpochReport, StageReport
from ponder.training.scoring import HeldOut, Score
from ponder.training.tracking import Bar, Tracking
from ponder.wrapper import PonderWrapper

__all__ = ["StageRun"]

_LOG_EVERY = 10


@dataclass
class StageRun:
    """One stage: its optimiser, its epochs, and what is told of them."""

    model: nn.Module
    wrapper: PonderWrapper
    loader: Iterable[Any]
    held_out: HeldOut | None
    policy: ExitPolicy
    every_step: bool
    options: Options
    accelerator: Any
    bar: Bar
    tracking: Tracking
    main_input: str | None
    taught: bool = False
    """Whether a batch had a gradient for something that the stage trains."""
    missed: bool = False
    """Whether a batch had a loss and no such gradient; a loss of 0 has nothing left to teach."""

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
        length = length_of(self.loader)
        total = None if length is None else length * options.epochs
        groups = parameter_groups(self.wrapper, options.lr, options.lambda_lr, options.head_lr, options.weight_decay)
        if not groups:
            raise ArgumentError(
                "model",
                expected=f"something that a stage with train={stage.train!r} may train",
                got="parameters that were all frozen before",
                remedy="Call model.requires_grad_(True), or leave out what should learn when you freeze.",
            )
        trained = [parameter for group in groups for parameter in group["params"]]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=may_fuse(trained))
        rates = LambdaLR(optimizer, lambda step: options.share(step, total))
        self.bar.stage(title, total)
        epochs, best = list[EpochReport](), Best(self.wrapper)
        chosen = self.every_step or tells_epochs_apart(self.policy, stage, self.wrapper.num_steps)
        for epoch in range(1, options.epochs + 1):
            where = f"{title}, epoch {epoch}"
            loss, means = self._epoch(prepared, optimizer, rates, total, where)
            early = rates.last_epoch > 1 and "progress" not in stage.objective.needs  # which may teach later
            if self.missed and not self.taught and (early or epoch == options.epochs):
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
        losses, means, halting, rows = list[float](), Means(), list[Tensor](), 0
        labelled = torch.zeros((), dtype=torch.long, device=self.accelerator.device)
        for given in self.loader:
            batch = read_batch(given, self.main_input).to(self.accelerator.device)
            done = rates.last_epoch
            self.wrapper.progress = Progress(done if total is None else min(done, total), total)
            with self._autocast():
                out = prepared(batch.inputs, labels=batch.labels, **batch.context)
            run = out.trajectory  # of training mode, and `read_batch` refuses batches without labels
            task = self.wrapper.task or infer_task(out.outputs, run.labels)
            of_batch = count_labelled(task, run.labels)
            loss = self._step(self._shared(out.loss, of_batch), optimizer, f"{where}, step {len(losses) + 1}")
            seen = measured(self.wrapper, run.outputs.detach(), run.hazard_logits, run.labels)
            labelled += of_batch
            rates.step()
            self.tracking.advance()
            losses.append(loss)
            means.add(seen)
            if "expected_steps" in seen:
                pmf, labelled_rows = run.halting.pmf.detach(), task.labelled(run.labels)
                pmf = pmf if labelled_rows is None else pmf[labelled_rows]
                pmf = nn.functional.pad(pmf, (0, max(self.wrapper.num_steps - pmf.shape[1], 0)))
                halting.append(pmf.sum(0))
                rows += len(pmf)
            expected = {"step": float(seen["expected_steps"].mean())} if "expected_steps" in seen else {}
            self.bar.advance({"loss": loss, **expected})
            if len(losses) % _LOG_EVERY == 1:
                self.tracking.log({"train/loss": loss, "train/lr": float(rates.get_last_lr()[0])})
        if not losses:
            raise empty_loader("loader")
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
        of_one_depth = len({len(each) for each in halting}) == 1
        own = (torch.stack(halting).double().sum(0).tolist(), rows) if of_one_depth else None
        seen_by_all = _gather(self.accelerator)([own])
        if all(each is not None and len(each[0]) == len(seen_by_all[0][0]) for each in seen_by_all):
            count = max(sum(each[1] for each in seen_by_all), 1)
            totals = zip(*(each[0] for each in seen_by_all), strict=True)
            self.tracking.histogram("halting", [sum(of_step) / count for of_step in totals])
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
        self.taught, self.missed = self.taught or size > 0, self.missed or (loss != 0 and not size > 0)
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


def _told(objective: Objective) -> dict[str, Any]:
    """An objective as JSON, or as Python shows it where it has no name or no JSON; it has been trained with."""
    try:
        return objective.to_dict()
    except PonderError:
        return {"name": repr(objective)}


def _gather(accelerator: Any) -> Callable[[list[Any]], list[Any]]:
    """A function from a list of what this process has seen to the list of what all processes have."""
    if accelerator.num_processes == 1:
        return list
    from accelerate.utils import gather_object

    found: Callable[[list[Any]], list[Any]] = gather_object
    return found


def _teaches_nothing(stage: Stage, where: str) -> ArgumentError:
    return ArgumentError(
        "objective",
        expected=f"one that teaches something of what a stage with train={stage.train!r} trains",
        got=f"{stage.objective!r}, which had no gradient for any of it in {where}",
        remedy="Train early heads with objectives.DeepSupervision('uniform'), say, and a Lambda head with "
        "objectives.Ponder(0.5); or let what the objective does teach learn: requires_grad_(True).",
    )


def _no_score(held_out: HeldOut, epochs: int, where: str) -> ArgumentError:
    return ArgumentError(
        "held_out" if held_out.metric is None else "metric",
        expected="a score that is a number in some epoch, by which the best is kept",
        got=f"NaN in all {epochs} epochs of {where}",
        remedy="Look for NaN in labels and outputs, and for what the metric divides by. The weights are those of the "
        "last epoch.",
    )
