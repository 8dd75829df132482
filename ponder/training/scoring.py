"""The score of a model on held-out data, at the exits of a policy."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ponder._utils.modes import evaluating
from ponder._utils.numerics import exit_shares
from ponder.engine.loop import Exits
from ponder.engine.losses import checked_labels, exit_loss
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.inference.prediction import joined
from ponder.parts.tasks import Task, infer_task
from ponder.parts.tasks.labels import check_no_broadcast, labelled_part
from ponder.policies import ExitPolicy
from ponder.training.batches import Batch, read_batch
from ponder.wrapper import PonderOutput, PonderWrapper

__all__ = ["HeldOut", "Score"]

_OF_CALL = ("row_ids", "policy_context", "num_steps")  # which neither stem nor steps see


@dataclass(frozen=True)
class Score:
    """What held-out data say.

    Args:
        score: That at the exits, the higher the better.
        exit_step: Mean exit step.
        exits: Share of the rows that left at each step, `(steps,)`.
        score_of_steps: The mean of the scores of all steps that are numbers, where it chooses; else None.
    """

    score: float
    exit_step: float
    exits: list[float]
    score_of_steps: float | None = None


@dataclass(frozen=True)
class HeldOut:
    """Held-out data, and the score that is taken of them.

    Args:
        loader: Batches.
        metric: A function from outputs (at the exits, or of one step) and labels, of all rows that have one, to a
            number, the higher the better; with an answer a token, of all labelled tokens. The task's own where None,
            which is of each token or label by itself where an example has several answers.
        main_input: Name of the main input in a batch that is a dict, as for `read_batch`.
    """

    loader: Iterable[Any]
    metric: Callable[[Tensor, Tensor], Any] | None
    main_input: str | None

    def check(self, policy: ExitPolicy) -> None:
        """Look for labels, and for what the policy reads of rows, before anything is trained.

        It looks at all batches of a list, or the first row of a data set.

        Random numbers are drawn as if nobody had looked. What can only be read on is not looked at.

        Raises:
            ArgumentError: They are not there.
        """
        loader = self.loader
        if isinstance(loader, Sequence) and len(loader):
            for batch in loader if isinstance(loader, list | tuple) else [loader[0]]:  # others may make theirs
                _check_reads(policy, read_batch(batch, self.main_input, "held_out"))
        elif isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
            with _random_state_kept():
                try:
                    row = loader.dataset[0]
                except (LookupError, TypeError):  # whose rows have other names
                    return
                collated = loader.collate_fn(row if loader.batch_sampler is None else [row])
            _check_reads(policy, read_batch(collated, self.main_input, "held_out"))

    def score(
        self, model: PonderWrapper, policy: ExitPolicy, device: torch.device, *, every_step: bool = False
    ) -> Score:
        """Run all batches to their exits, in evaluation mode.

        Args:
            model: The model.
            policy: Who decides.
            device: Where it runs.
            every_step: Whether to run all steps for all rows, for the mean of their scores too.

        Raises:
            ArgumentError: There is no labelled row, or labels differ in kind from batch to batch.
        """
        outputs, labels, steps = list[tuple[Tensor, ...]](), list[Tensor](), list[Tensor]()
        task = model.task
        with evaluating(model), torch.no_grad():  # what a model keeps of a call, it may train with
            for given in self.loader:
                batch = read_batch(given, self.main_input, "held_out").to(device)
                seen = sum(map(len, steps))
                named = {"row_ids": torch.arange(seen, seen + len(batch.labels), device=device), **batch.context}
                if every_step:
                    kept = "features" in policy.needs
                    run = model.unroll(batch.inputs, keep_features=kept, **named)
                    found: Exits | PonderOutput = run.replay(policy)
                    of_steps = run.outputs.unbind(1)
                else:
                    found, of_steps = model(batch.inputs, policy=policy, **named), ()
                checked = checked_labels(task, found.outputs, batch.labels)
                task = task or infer_task(found.outputs, checked)
                context = {name: value for name, value in batch.context.items() if name not in _OF_CALL}
                mask = model.positions_of(batch.inputs, context, found.outputs) if task.per_position else None
                counted = [labelled_part(task, each, checked, mask) for each in (found.outputs, *of_steps)]
                outputs.append(tuple(each.cpu() for each, _ in counted))
                labels.append(counted[0][1].cpu())
                steps.append(found.exit_step.cpu())
        if task is None or not sum(map(len, labels)):
            raise ArgumentError(
                "held_out", expected="at least one row with a label", got="none", remedy="Pass more data, or None."
            )
        kinds = {part.shape[1:] for part in labels}
        if len(kinds) > 1:
            raise ArgumentError(
                "held_out",
                expected="labels of one kind in all batches, to be scored together",
                got=f"labels of shapes {', '.join(str(('rows', *kind)) for kind in sorted(kinds))}",
                remedy="Make soft labels of all, or classes: labels.argmax(-1).",
            )
        exit_step = torch.cat(steps)
        known, has_length = torch.cat(labels), task.per_position and not task.per_token
        scores = [
            self._measure(task, joined(of_step, has_length, task.blank), known)
            for of_step in zip(*outputs, strict=True)
        ]
        return Score(
            score=scores[0],
            exit_step=float(exit_step.double().mean()),
            exits=exit_shares(exit_step, model.num_steps),
            score_of_steps=_mean_of_numbers(scores[1:]) if every_step else None,
        )

    def name(self, task: Task | None) -> str:
        """What the score is."""
        if self.metric is not None:
            return getattr(self.metric, "__name__", "score")
        return "score" if task is None else task.metric or "negative_loss"

    def _measure(self, task: Task, outputs: Tensor, labels: Tensor) -> float:
        if self.metric is not None:
            found = self.metric(outputs, labels)
            try:
                number = float(found)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ArgumentTypeError(
                    "metric",
                    expected="a function (outputs, labels) -> one number",
                    got=f"{type(found).__name__} from it",
                    remedy="Return a float, or a tensor with one number.",
                ) from error
            check_no_broadcast(self.metric, task, outputs, labels)
            return number
        if task.per_token or task.exact_match:  # all answers of a row may be right in no epoch, which tells none apart
            sure, right = task.confidences(outputs.unsqueeze(1), labels)
            return float((right & ~sure.isnan()).double().mean())  # NaN is never right
        if task.metric is None:
            loss = exit_loss(task, outputs, labels)
            assert loss is not None
            return -float(loss)
        scores = task.scores(outputs.unsqueeze(1), labels)
        if task.comparable:
            scores = scores.masked_fill(~task.answered(outputs).unsqueeze(1), 0.0)
        return float(scores.mean())


def _check_reads(policy: ExitPolicy, batch: Batch) -> None:
    """Refuse batches without what a policy reads of each row."""
    if "context" in policy.needs and "policy_context" not in batch.context:
        raise ArgumentError(
            "held_out",
            expected=f"batches with what {policy!r} reads of each row",
            got=f"a batch with the context {sorted(batch.context)}",
            remedy="Put it into the dict of the batch: {'policy_context': {'budget': budgets}, …}, say.",
        )


def _mean_of_numbers(scores: Sequence[float]) -> float:
    """The mean of those that are numbers: a correlation of an early step whose answers are all the same is none."""
    known = [score for score in scores if not math.isnan(score)]
    return fmean(known) if known else math.nan


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Give back the random states of PyTorch, Python and NumPy, from which data sets draw."""
    numpy = sys.modules.get("numpy")
    state, array_state = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):  # data sets draw on the CPU
            yield
    finally:
        random.setstate(state)
        if numpy is not None:
            numpy.random.set_state(array_state)
