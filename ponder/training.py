"""Training: all stages of a recipe on `accelerate`, and one stage at a time for trainers of your own."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf, isnan
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from ponder._utils.checks import check_int, check_real, library
from ponder._utils.modes import evaluating
from ponder._utils.trees import Tree, map_tensors
from ponder.errors import ArgumentError, NonFiniteError, PonderError
from ponder.model.heads import PerStep
from ponder.objectives import Progress
from ponder.policies import ExitPolicy, LastStep
from ponder.recipes import Stage
from ponder.wrapper import PonderWrapper

__all__ = ["EpochReport", "FitReport", "fit", "joined_loss", "parameter_groups", "run_stage"]

_SPAN = ("start_positions", "end_positions")


@dataclass(frozen=True)
class EpochReport:
    """Result of one epoch of training.

    Args:
        stage: Number of the stage, from 1.
        epoch: Number of the epoch in its stage, from 1.
        loss: Mean training loss over the batches.
        score: Score on the held-out data, the higher the better; None without such data.
        exit_step: Mean exit step there.
        kept: Whether its weights were kept at the end of the stage: the best on held-out data, or the last.
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
            score = (
                ""
                if epoch.score is None
                else f", score {epoch.score:.4f} at step {epoch.exit_step:.2f}"
            )
            kept = " (kept)" if epoch.kept else ""
            lines.append(
                f"stage {epoch.stage}, epoch {epoch.epoch}: loss {epoch.loss:.4f}{score}{kept}"
            )
        return "\n".join(lines)


def fit(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    epochs: int = 3,
    lr: float = 5e-5,
    head_lr: float | None = 1e-3,
    lambda_lr: float | None = None,
    held_out: Iterable[Any] | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.1,
    clip: float | None = 1.0,
    seed: int | None = None,
) -> FitReport:
    """Train a model through every stage of its recipe; needs the extra ``train``.

    The stages are `PonderWrapper.stages`: those of the recipe, or one with the model's objective. Each freezes what it
    does not train, and has an optimiser (AdamW) and a schedule of its own. Where it runs, in what precision and on how
    many devices, is `accelerate`'s affair (``accelerate launch``, ``torchrun``).

    Afterwards the model is in evaluation mode, and frozen where it was frozen before.

    Args:
        model: A `PonderWrapper`, or a module that holds one.
        loader: Training batches, iterated once an epoch: a DataLoader (several processes share its batches), or a list.
            A batch is a pair (inputs, labels), or a dict with the labels under ``"labels"``, whose other entries are
            the inputs (under the model's main input name, or the first) and the context.
        epochs: Epochs of each stage.
        lr: Learning rate of the encoder.
        head_lr: Learning rate of the heads, which are new; `lr` where None.
        lambda_lr: Learning rate of the Lambda head; `lr` where None.
        held_out: Batches on which each epoch is scored; the best epoch's weights are kept.
        weight_decay: Weight decay of AdamW on weights; biases and norms are spared.
        warmup: Share of the steps in which the rates rise from 0, in [0, 1), before they fall to 0 again.
        clip: Largest norm of the gradient; None does not clip.
        seed: Seed of PyTorch's own generator, which draws dropout and the order of the loader.

    Raises:
        ArgumentError: Batches without labels, a number out of range, or a stage that would train nothing.
        NonFiniteError: A loss or gradient that is NaN or infinite. The weights are those before that step.
        PonderError: accelerate is not installed.

    Example:
        >>> steps = [nn.Linear(8, 8) for _ in range(3)]
        >>> model = PonderWrapper.from_recipe(steps, "palbert", num_outputs=2, example=torch.randn(2, 8))
        >>> report = ponder.fit(model, [(torch.randn(4, 8), torch.tensor([0, 1, 1, 0]))], epochs=2)
        >>> len(report.epochs)
        2
    """
    check_int("epochs", epochs)
    check_real("warmup", warmup, 0.0, 1.0, open_high=True)
    wrapper = next(part for part in model.modules() if isinstance(part, PonderWrapper))
    if seed is not None:
        torch.manual_seed(seed)
    accelerator = _accelerator()
    if isinstance(loader, DataLoader):
        loader = accelerator.prepare(loader)
    elif accelerator.num_processes > 1:
        expected = f"a DataLoader, whose batches {accelerator.num_processes} processes can share"
        got = f"a {type(loader).__name__}, of which each would train on all"
        remedy = (
            "Wrap the data set: torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)."
        )
        raise ArgumentError("loader", expected=expected, got=got, remedy=remedy)
    stages = wrapper.stages
    done = list[EpochReport]()
    try:
        for number, stage in enumerate(stages, start=1):
            with run_stage(wrapper, stage):
                groups = parameter_groups(wrapper, lr, lambda_lr, head_lr, weight_decay)
                run = _StageRun(model, wrapper, accelerator, loader, groups, epochs, warmup, clip)
                # A whole stage still to come moves the exits; early heads and Lambda heads are trained for them.
                policy = (
                    wrapper.policy if number == len(stages) or stage.train != "all" else LastStep()
                )
                done += run.train(number, held_out, policy)
    finally:
        model.eval()
    return FitReport(tuple(done))


@contextmanager
def run_stage(model: PonderWrapper, stage: Stage) -> Iterator[None]:
    """Train one stage inside the block: with its objective, its teacher and heads, and all else frozen.

    After the block teacher, stages and what may learn are as before.

    Args:
        model: The model.
        stage: The stage.

    Raises:
        ArgumentError: The stage trains parts that the model does not have, or that were frozen before.

    Example:
        >>> steps = [nn.Linear(8, 8) for _ in range(3)]
        >>> model = PonderWrapper.from_recipe(steps, "deebert", num_outputs=2, example=torch.randn(2, 8))
        >>> with ponder.training.run_stage(model, model.stages[1]):  # the early heads, on everything else frozen
        ...     [weight.requires_grad for weight in model.head.heads[0].parameters()], model.objective
        ([True, True], DeepSupervision(weights='uniform'))
    """
    stages, teacher = model.stages, model.teacher
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    early = list(model.head.heads)[:-1] if isinstance(model.head, PerStep) else []
    try:
        if stage.teacher == "previous":
            model.teacher = None
            model.teacher = copy.deepcopy(model).requires_grad_(False)
        model.stages = (stage,)
        _freeze(model, stage, early)
        yield
    finally:
        for weight in learned:
            weight.requires_grad_(True)
        model.stages, model.teacher, model.progress = stages, teacher, None


def parameter_groups(
    model: nn.Module,
    lr: float,
    lambda_lr: float | None = None,
    head_lr: float | None = None,
    weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Return groups for a `torch.optim` optimiser: the encoder's parameters, the heads', those of the Lambda head.

    New heads on a pretrained encoder learn best at a rate some twenty times that of the encoder; PALBERT gives the
    Lambda head one of its own (Section 3.2).

    Args:
        model: A `PonderWrapper`, or any module that holds one.
        lr: Learning rate of all that has none of its own.
        lambda_lr: Learning rate of the Lambda head and of a learned prior; `lr` where None.
        head_lr: Learning rate of the heads; `lr` where None.
        weight_decay: Weight decay; where given, each group comes in two with this key: the weights, and, with 0, what
            has fewer than two dimensions (biases and norms).

    Returns:
        Groups with `params`, `lr` and `name` (``"model"``, ``"head"``, ``"lambda"``); a group without parameters is
        left out.

    Example:
        >>> model = PonderWrapper(nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2), lambda_head=LambdaHead(4))
        >>> groups = ponder.parameter_groups(model, lr=1e-4, lambda_lr=5e-5)
        >>> sorted({group["lr"] for group in groups})
        [5e-05, 0.0001]
    """
    rates = {"model": lr, "head": head_lr, "lambda": lambda_lr}
    owners: dict[int, str] = {}
    for wrapper in model.modules():
        if isinstance(wrapper, PonderWrapper):
            owners |= dict.fromkeys(map(id, wrapper.head.parameters()), "head")
            halting = [
                part for part in (wrapper.lambda_head, wrapper.prior_weights) if part is not None
            ]
            owners |= {id(weight): "lambda" for part in halting for weight in part.parameters()}
    made = []
    for name, rate in rates.items():
        held = [
            w for w in model.parameters() if w.requires_grad and owners.get(id(w), "model") == name
        ]
        group = {"name": name, "lr": lr if rate is None else rate}
        if weight_decay is None:
            made.append({**group, "params": held})
        else:
            made.append(
                {**group, "params": [w for w in held if w.dim() > 1], "weight_decay": weight_decay}
            )
            made.append({**group, "params": [w for w in held if w.dim() < 2], "weight_decay": 0.0})
    return [group for group in made if group["params"]]


@dataclass
class _StageRun:
    """One stage of `fit`: its optimiser, its epochs, and the best of them."""

    model: nn.Module
    wrapper: PonderWrapper
    accelerator: Any
    loader: Iterable[Any]
    groups: list[dict[str, Any]]
    epochs: int
    warmup: float
    clip: float | None
    total: int | None = None
    """The number of steps of the optimiser, where the loader has a length."""

    def train(
        self, number: int, held_out: Iterable[Any] | None, policy: ExitPolicy
    ) -> list[EpochReport]:
        """Train, and leave the best epoch in the model, and nothing of accelerate."""
        length = getattr(self.loader, "__len__", None)
        self.total = None if length is None else length() * self.epochs
        optimizer = torch.optim.AdamW(self.groups, weight_decay=0.0)
        self.rates = LambdaLR(optimizer, self._rate)
        plain = "forward" not in vars(self.wrapper)
        self.prepared, self.optimizer = self.accelerator.prepare(self.wrapper, optimizer)
        done, best, weights, kept = list[EpochReport](), -inf, None, self.epochs
        try:
            for epoch in range(1, self.epochs + 1):
                report = EpochReport(number, epoch, self._epoch(f"stage {number}, epoch {epoch}"))
                if held_out is not None:
                    score, exit_step = self._score(held_out, policy)
                    report = EpochReport(number, epoch, report.loss, score, exit_step)
                    if weights is None or score > best:
                        best, kept = -inf if isnan(score) else score, epoch
                        weights = copy.deepcopy(self.wrapper.state_dict())
                done.append(report)
        finally:
            self.accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
            if plain:  # mixed precision puts one around that of the class
                vars(self.wrapper).pop("forward", None)
        if weights is not None:
            self.wrapper.load_state_dict(weights)
        return [replace(each, kept=each.epoch == kept) for each in done]

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
        losses = list[float]()
        device = self.accelerator.device
        for batch in self.loader:
            inputs, labels, context = map_tensors(
                lambda tensor: tensor.to(device), read_batch(batch, self.wrapper.main_input_name)
            )
            if self.total is not None:
                self.wrapper.progress = Progress(min(self.rates.last_epoch, self.total), self.total)
            with self.accelerator.autocast():
                out = self.prepared(inputs, labels=labels, **context)
            losses.append(self._step(self._shared(out), f"{where}, step {len(losses) + 1}"))
            self.rates.step()
        if not losses:
            remedy = "Pass a list, or a DataLoader."
            raise ArgumentError("loader", expected="at least one batch", got="none", remedy=remedy)
        return sum(losses) / len(losses)

    def _shared(self, out: Any) -> Tensor:
        """Return the loss, whose mean over all processes is that over the labelled rows of their batches."""
        processes: int = self.accelerator.num_processes
        if processes == 1:
            return out.loss  # type: ignore[no-any-return]
        labelled = out.trajectory.meaning.labelled(out.trajectory.labels).sum()
        return joined_loss(out.loss, labelled, self.accelerator.reduce(labelled, "sum"), processes)

    def _step(self, loss: Tensor, where: str) -> float:
        """Make a step of the optimiser and return the loss; nothing moves where a number is not finite."""
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        trained = [weight for group in self.groups for weight in group["params"]]
        norm = self.accelerator.clip_grad_norm_(trained, inf if self.clip is None else self.clip)
        value, size = float(loss.item()), float(norm)
        if not (abs(value) < inf and (size < inf or self.accelerator.scaler is not None)):
            raise NonFiniteError(
                f"{where}: expected a finite loss and gradient; got a loss of {value:g}, a gradient of norm {size:g}. "
                "The weights are those before this step. Lower the learning rates, or look for NaN in the data."
            )
        self.optimizer.step()
        return value

    def _score(self, held_out: Iterable[Any], policy: ExitPolicy) -> tuple[float, float]:
        """Return the score of held-out data, and the mean exit step.

        With a head at each step that is the mean over all steps, which does not hang on a threshold that was chosen for
        other weights; with a shared head, and under `LastStep`, the score at the exits of `policy`.
        """
        wrapper, scores, exits = self.wrapper, list[Tensor](), list[Tensor]()
        every = isinstance(wrapper.head, PerStep) and not isinstance(policy, LastStep)
        with evaluating(wrapper), self.accelerator.autocast():
            for batch in held_out:
                inputs, labels, context = map_tensors(
                    lambda tensor: tensor.to(self.accelerator.device),
                    read_batch(batch, wrapper.main_input_name),
                )
                run = wrapper.unroll(
                    inputs, labels=labels, keep_features="features" in policy.needs, **context
                )
                steps = run.replay(policy).exit_step.cpu()
                if run.meaning.metric is None:
                    table = -run.meaning.step_losses(run.outputs, torch.as_tensor(run.labels)).cpu()
                else:
                    table = torch.as_tensor(run.score_table())
                scores.append(
                    table.mean(1) if every else table[torch.arange(len(table)), steps - 1]
                )
                exits.append(steps)
        return float(torch.cat(scores).mean()), float(torch.cat(exits).double().mean())


def joined_loss(loss: Tensor, labelled: Tensor, total: Tensor, parts: int) -> Tensor:
    """Weigh the loss of one of several parts of a batch by its rows: the mean over the parts is that over all rows.

    Parts of as many labelled rows (`labelled`, of `total` in all) keep their losses to the last bit.
    """
    return loss * ((labelled * parts).to(loss.dtype) / total.clamp(min=1))


def read_batch(batch: Any, main_input: str | None = None) -> tuple[Tree, Tensor, dict[str, Any]]:
    """Return the inputs, labels and context of a training batch.

    Args:
        batch: A pair (inputs, labels); a pair (inputs, dict), whose dict holds the labels under ``"labels"`` (those of
            spans under ``"start_positions"`` and ``"end_positions"``) and context; or one dict, with the inputs under
            `main_input`, or else as its first entry.
        main_input: The name of the inputs in a dict, where the model has one.

    Example:
        >>> from ponder.training import read_batch
        >>> read_batch({"pixels": torch.zeros(2, 4), "labels": torch.tensor([0, 1])})[1]
        tensor([0, 1])
    """
    if isinstance(batch, Mapping):
        given = {name: value for name, value in batch.items() if value is not None}
        name = next(
            (
                key
                for key in (main_input, *given)
                if key in given and key not in ("labels", "label")
            ),
            "",
        )
        inputs = given.pop(name, None)
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, labels = batch
        given = dict(labels) if isinstance(labels, Mapping) else {"labels": labels}
    else:
        inputs, given = None, {}
    if all(name in given for name in _SPAN):  # of a span, as Transformers names them
        given["labels"] = torch.stack([given.pop(name).reshape(-1) for name in _SPAN], dim=1)
    labels = given.pop("labels", None)
    labels = given.pop("label", None) if labels is None else labels
    if inputs is None or not isinstance(labels, Tensor):
        expected = "batches with labels: pairs (inputs, labels), or dicts with the labels, a tensor, under 'labels'"
        got = (
            f"a dict with {', '.join(map(str, batch))}"
            if isinstance(batch, Mapping)
            else type(batch).__name__
        )
        remedy = "Let the data set, or the collate function of the DataLoader, give the labels too."
        raise ArgumentError("loader", expected=expected, got=got, remedy=remedy)
    return inputs, labels, given


def _accelerator() -> Any:
    accelerate = library("accelerate", "ponder.fit", "train")
    # Objectives that draw steps, and early stages, leave some parameters without a gradient.
    accelerator = accelerate.Accelerator(
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if int(os.environ.get("WORLD_SIZE", 1)) != accelerator.num_processes:
        raise PonderError(
            f"ponder.fit: {os.environ['WORLD_SIZE']} processes were started, and accelerate trains in "
            f"{accelerator.num_processes}: each would train alone. Start them with accelerate launch."
        )
    return accelerator


def _freeze(model: PonderWrapper, stage: Stage, early: list[nn.Module]) -> None:
    """Freeze what the stage does not train; a module that a trained part shares with a frozen one is frozen too."""
    halting = [part for part in (model.lambda_head, model.prior_weights) if part is not None]
    trained: dict[str, list[nn.Module]] = {
        "all": [model],
        "early_heads": early,
        "lambda_head": halting,
    }
    moves = {
        id(weight)
        for part in trained[stage.train]
        for weight in part.parameters()
        if weight.requires_grad
    }
    if stage.train != "all":
        last = model.head.heads[-1] if isinstance(model.head, PerStep) else model.head
        others = [
            model.stem,
            model.steps,
            model.readout,
            last,
            *(halting if stage.train == "early_heads" else early),
        ]
        moves -= {id(weight) for part in others if part is not None for weight in part.parameters()}
    if not moves:
        raise ArgumentError(
            "stage",
            expected=f"something that a stage with train={stage.train!r} may train",
            got="a model without such a part, or all of it frozen before",
            remedy="Early heads need head=ponder.PerStep([…]), a Lambda head lambda_head=ponder.LambdaHead(width); or "
            "call model.requires_grad_(True).",
        )
    for weight in model.parameters():
        if id(weight) not in moves:
            weight.requires_grad_(False)
