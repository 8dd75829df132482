"""Losses of a batch: of every step for an objective, and their mean over the labelled rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder.tasks import Task

__all__ = ["joined_loss", "labelled_mean", "step_losses"]


def step_losses(task: Task, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the losses of outputs `(batch, steps, …)`, in one call where the task looks at each row alone."""
    if not task.each_row_alone:
        return torch.stack([task.losses(of_step, labels) for of_step in outputs.unbind(1)], dim=1)
    steps = outputs.shape[1]
    repeated = labels.unsqueeze(1).expand(-1, steps, *labels.shape[1:]).flatten(0, 1)
    losses: Tensor = task.losses(outputs.flatten(0, 1), repeated).unflatten(0, (-1, steps))
    return losses


def labelled_mean(losses: Tensor, task: Task, labels: Tensor) -> Tensor:
    """Return the mean of losses, `(batch,)`, over the rows that have a label; 0 where none has."""
    labelled: Tensor = task.labelled(labels)
    return torch.where(labelled, losses, 0.0).sum() / labelled.sum().clamp(min=1)


def joined_loss(loss: Tensor, labelled: Tensor, total: Tensor, parts: int) -> Tensor:
    """Weigh the loss of one of several parts of a batch by its rows: the mean over the parts is that over all rows.

    Parts of as many labelled rows (`labelled`, of `total` in all) keep their losses to the last bit.
    """
    return loss * ((labelled * parts).to(loss.dtype) / total.clamp(min=1))
