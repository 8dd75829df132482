"""The model of a stage of training, a `PonderWrapper` or a loop, and its scores of batches."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ponder.loops import Loop
from ponder.model.batch import ArgumentNames, Batch
from ponder.model.heads import PerStep
from ponder.objectives import Progress
from ponder.policies import ExitPolicy, LastStep
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderWrapper

__all__ = ["LoopModel", "Scores", "Trained", "WrappedModel"]


class Scores(NamedTuple):
    """Scores and exit steps, `(rows,)` each; of a loop, one for each position."""

    scores: Tensor
    exit_step: Tensor


class Trained(Protocol):
    """The model of a stage: the module that is called, its progress, and scores of batches."""

    called: nn.Module
    names: ArgumentNames

    def set_progress(self, progress: Progress) -> None:
        """Set the progress of training, for objectives that depend on it."""

    def score(self, batch: Batch, policy: ExitPolicy) -> Scores:
        """Return the scores of a batch of held-out data, at the exits of a policy."""


class WrappedModel:
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

    def score(self, batch: Batch, policy: ExitPolicy) -> Scores:
        """Return the score and the exit step of each row."""
        keep_features = "features" in policy.needs
        trajectory = self.wrapper.unroll(
            batch.inputs, labels=batch.labels, keep_features=keep_features, **batch.context
        )
        exit_step = trajectory.replay(policy).exit_step.cpu()
        table = _score_of_steps(trajectory)
        if isinstance(self.wrapper.head, PerStep) and not isinstance(policy, LastStep):
            return Scores(table.mean(1), exit_step)
        at_exits = table[torch.arange(len(table)), exit_step - 1]
        return Scores(at_exits, exit_step)


class LoopModel:
    """A loop in training, or a module around it; the score is minus the loss at the exits."""

    def __init__(self, called: nn.Module, loop: Loop) -> None:
        self.called = called
        self.names = ArgumentNames.of_call(called)
        self.loop = loop

    def set_progress(self, progress: Progress) -> None:
        """Set the progress of the loop."""
        self.loop.progress = progress

    def score(self, batch: Batch, policy: ExitPolicy) -> Scores:
        """Return the score and the exit step of each real position under the loop's policy."""
        out = self.called(batch.inputs, labels=batch.labels, **batch.context)
        is_real = out.exit_step > 0  # positions of padding have the step 0
        exit_step = out.exit_step[is_real].cpu()
        score = -out.loss.cpu()
        return Scores(score.expand(exit_step.shape), exit_step)


def _score_of_steps(trajectory: Trajectory) -> Tensor:
    """Return the score of each row at each step, `(rows, steps)`; without one, minus the loss."""
    if trajectory.meaning.metric is not None:
        return torch.as_tensor(trajectory.score_table())
    labels = torch.as_tensor(trajectory.labels)
    losses: Tensor = trajectory.meaning.step_losses(trajectory.outputs, labels)
    return -losses.cpu()
