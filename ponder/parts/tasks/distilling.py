"""What a teacher teaches: how far answers are from its own."""

from __future__ import annotations

from inspect import signature

import torch.nn.functional as F
from torch import Tensor

from ponder._utils.numerics import at_least_float32, weighted
from ponder.errors import ArgumentError
from ponder.parts.tasks.base import Task, no_distillation

__all__ = ["check_distils", "divergence"]


def divergence(student: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    """T² KL(teacher ‖ student) of logits over a dimension, which is gone from what is given."""
    log_student = F.log_softmax(at_least_float32(student) / temperature, dim=dim)
    log_teacher = F.log_softmax(at_least_float32(teacher) / temperature, dim=dim)
    divergence = weighted(log_teacher.exp(), log_teacher - log_student)  # a class of logit −inf is not taught
    return temperature**2 * divergence.sum(dim)


def check_distils(task: Task) -> None:
    """Refuse a task that does not define what a teacher teaches."""
    if type(task).distillation_losses is Task.distillation_losses:
        raise no_distillation(task)
    taken = signature(task.distillation_losses).parameters
    if task.per_position and not any(one.name == "mask" or one.kind is one.VAR_KEYWORD for one in taken.values()):
        raise ArgumentError(
            "task",
            expected="distillation_losses(student, teacher, temperature, mask=None) of a task with positions",
            got=f"the arguments {', '.join(taken)}",
            remedy="Take mask, (batch, length) bool: the positions to be taught.",
        )
