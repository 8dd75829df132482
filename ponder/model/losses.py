"""Losses: from an unrolled batch to the objective's number, and from the outputs at the exits to the task's."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder.distributions import StepDistribution
from ponder.objectives import Objective, Progress, Unrolled
from ponder.tasks import Task

__all__ = ["count_labelled", "exit_loss", "joined_loss", "training_loss"]


def training_loss(
    objective: Objective,
    task: Task,
    outputs: Tensor,
    labels: Tensor,
    *,
    hazard_logits: Tensor | None = None,
    features: Tensor | None = None,
    prior: StepDistribution | None = None,
    progress: Progress | None = None,
    teacher_outputs: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the objective's mean over the rows that have a label, a scalar; fields as in `objectives.Unrolled`.

    All terms have this one denominator: a row without a label counts for nothing in any of them.

    Args:
        objective: The objective.
        task: The meaning of outputs and labels.
        outputs: Outputs of all steps, `(batch, steps, …)`.
        labels: Labels as the task takes them.
        hazard_logits: `(batch, steps)`.
        features: `(batch, steps, …)`.
        prior: The prior over these steps.
        progress: The progress of training.
        teacher_outputs: Outputs of a frozen teacher, `(batch, …)`.
        mask: The positions that are no padding.
    """
    halting = None if hazard_logits is None else StepDistribution.from_hazard_logits(hazard_logits)
    unrolled = Unrolled(
        outputs,
        _step_losses(task, outputs, labels),
        task,
        halting,
        prior,
        labels=labels,
        features=features,
        progress=progress,
        teacher_outputs=teacher_outputs,
        mask=mask,
    )
    return _mean(objective.per_example(unrolled), task.labelled(labels))


def exit_loss(task: Task, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the task's mean loss of the outputs at the exits, `(batch, …)`; 0 for no rows."""
    labels = task.check(outputs, labels)
    return _mean(task.losses(outputs, labels), task.labelled(labels))


def count_labelled(task: Task, labels: Tensor) -> Tensor:
    """Return how many rows have a label, and so count in the mean over a batch; a scalar where the labels are."""
    labelled = task.labelled(labels)
    return labels.new_tensor(len(labels), dtype=torch.long) if labelled is None else labelled.sum()


def joined_loss(loss: Tensor, labelled: Tensor, total: Tensor, parts: int) -> Tensor:
    """Weigh the loss of one of several parts of a batch by its rows: the mean over the parts is that over all rows.

    Parts of as many labelled rows keep their losses to the last bit.

    Args:
        loss: The mean over the labelled rows of this part.
        labelled: The number of those, `count_labelled`.
        total: The number of labelled rows of all parts.
        parts: The number of parts, over which losses or gradients are then averaged.

    Example:
        >>> from ponder.model.losses import joined_loss
        >>> total = torch.tensor(4)  # of two parts: a row of loss 4, and three of mean loss 2
        >>> losses, rows = torch.tensor([4.0, 2.0]), torch.tensor([1, 3])
        >>> joined_loss(losses, rows, total, parts=2)
        tensor([2., 3.])
    """
    return loss * ((labelled * parts).to(loss.dtype) / total.clamp(min=1))


def _step_losses(task: Task, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the losses of every step, `(batch, steps)`, in one call where the task looks at each row alone."""
    if not task.each_row_alone:
        return torch.stack([task.losses(of_step, labels) for of_step in outputs.unbind(1)], dim=1)
    steps = outputs.shape[1]
    repeated = labels.unsqueeze(1).expand(-1, steps, *labels.shape[1:]).flatten(0, 1)
    return task.losses(outputs.flatten(0, 1), repeated).unflatten(0, (-1, steps))


def _mean(losses: Tensor, labelled: Tensor | None) -> Tensor:
    """Return the mean over the labelled rows, `(batch,)` bool, or over all where None; 0 where there is none."""
    if labelled is not None:
        return torch.where(labelled, losses, 0.0).sum() / labelled.sum().clamp(min=1)
    return losses.mean() if losses.shape[0] else losses.sum()
