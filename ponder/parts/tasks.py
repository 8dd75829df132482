"""Tasks: how outputs and labels give one loss per example, and when two answers agree."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder.errors import ArgumentError, ArgumentTypeError

__all__ = ["Task", "TaskName", "as_task", "infer_task"]

TaskName = Literal["classification", "regression", "multilabel", "token_classification"]
LossFunction = Callable[[Tensor, Tensor], Tensor]
IGNORED_LABEL = -100


class Task(ABC):
    """What the outputs mean. A task checks labels once per call and gives losses per example."""

    name: ClassVar[str]
    each_row_alone: ClassVar[bool] = False
    """Whether `losses` may be called once with the rows of all steps: it looks at each row alone."""

    @abstractmethod
    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Negative log-likelihoods, `(batch,)`, of `labels` under the outputs of one step, `(batch, …)`."""

    @abstractmethod
    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Labels in the shape and type that `losses` takes, or an error; `outputs` are those of one step."""

    def distillation_losses(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Losses, `(batch,)`, of one step's outputs against the teacher's."""
        raise ArgumentError(
            "objective",
            expected="a task that defines what the teacher teaches",
            got=f"Distillation with the task {self.name!r}",
            remedy="Distil in classification, multilabel or regression.",
        )


class Classification(Task):
    """One class out of C: cross-entropy; outputs `(batch, classes)`, labels `(batch,)` long."""

    name = "classification"
    each_row_alone = True

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(at_least_float32(outputs), labels, reduction="none")

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.dim() != 2 or outputs.shape[-1] < 2:
            raise _wrong_outputs("(batch, classes) with at least 2 classes", outputs, "Use task='regression'?")
        _check_shape(labels, outputs.shape[:1])
        _check_integer(labels)
        _check_range(labels, outputs.shape[-1])
        return labels.long()

    def distillation_losses(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        log_student = F.log_softmax(at_least_float32(student) / temperature, dim=-1)
        log_teacher = F.log_softmax(at_least_float32(teacher) / temperature, dim=-1)
        divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True)
        return temperature**2 * divergence.sum(-1)


class Regression(Task):
    """Real numbers: squared error, averaged over the numbers of an example; outputs and labels alike."""

    name = "regression"
    each_row_alone = True

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        error = (at_least_float32(outputs).reshape(labels.shape) - labels) ** 2
        return error.flatten(1).mean(1) if error.dim() > 1 else error

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if labels.is_complex():
            raise _wrong_label_type("real numbers", labels)
        single = outputs.dim() == 2 and outputs.shape[-1] == 1
        if labels.shape != outputs.shape and not (single and labels.shape == outputs.shape[:1]):
            _check_shape(labels, outputs.shape[:1] if single else outputs.shape)
        return labels.to(at_least_float32(outputs).dtype)

    def distillation_losses(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return self.losses(student, at_least_float32(teacher))


class Multilabel(Task):
    """Any subset of C labels: binary cross-entropy, averaged over labels; outputs and labels `(batch, labels)`."""

    name = "multilabel"
    each_row_alone = True

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(at_least_float32(outputs), labels, reduction="none").mean(-1)

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.dim() != 2:
            raise _wrong_outputs("(batch, labels)", outputs, "Give the head one output per label.")
        _check_shape(labels, outputs.shape)
        labels = labels.to(at_least_float32(outputs).dtype)
        if labels.numel() and not bool(((labels >= 0) & (labels <= 1)).all()):
            raise ArgumentError("labels", expected="0 or 1 (or in between)", got=labels, remedy="Encode them so.")
        return labels

    def distillation_losses(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        target = torch.sigmoid(at_least_float32(teacher) / temperature)
        return temperature**2 * self.losses(student / temperature, target)


class TokenClassification(Task):
    """A class per position: mean cross-entropy over the positions whose label is not −100.

    Outputs `(batch, length, classes)`, labels `(batch, length)` long.
    """

    name = "token_classification"
    each_row_alone = True

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        per_token = F.cross_entropy(
            at_least_float32(outputs).transpose(1, 2), labels, reduction="none", ignore_index=IGNORED_LABEL
        )
        return per_token.sum(1) / (labels != IGNORED_LABEL).sum(1).clamp(min=1)

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.dim() != 3 or outputs.shape[-1] < 2:
            raise _wrong_outputs("(batch, length, classes)", outputs, "Use a readout that keeps positions.")
        _check_shape(labels, outputs.shape[:2])
        _check_integer(labels)
        _check_range(labels[labels != IGNORED_LABEL], outputs.shape[-1])
        return labels.long()


class Custom(Task):
    """A user's own loss, `function(outputs, labels) -> (batch,)`, called once a step."""

    name = "custom"

    def __init__(self, function: LossFunction) -> None:
        self.function = function

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        losses = self.function(outputs, labels)
        if not isinstance(losses, Tensor) or losses.shape != outputs.shape[:1]:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ArgumentError(
                "task",
                expected=f"a callable that gives one loss per example, ({outputs.shape[0]},)",
                got=got,
                remedy="Do not reduce over the batch: use reduction='none' and average what belongs to one example.",
            )
        return losses

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if labels.shape[:1] != outputs.shape[:1]:
            _check_shape(labels, outputs.shape[:1])
        return labels


_TASKS: dict[str, Task] = {
    task.name: task for task in (Classification(), Regression(), Multilabel(), TokenClassification())
}


def as_task(task: TaskName | LossFunction | Task | None) -> Task | None:
    """The task that a user names, or wraps in a callable; None stays None (see `infer_task`)."""
    if task is None or isinstance(task, Task):
        return task
    if callable(task):
        return Custom(task)
    if task not in _TASKS:
        raise ArgumentError(
            "task",
            expected=f"one of {', '.join(_TASKS)}, or a callable (outputs, labels) -> losses (batch,)",
            got=repr(task),
            remedy="Correct the name.",
        )
    return _TASKS[task]


def infer_task(outputs: Tensor, labels: Tensor) -> Task:
    """The task of a model that names none: integer labels are classes, all others are numbers."""
    if labels.is_floating_point() or outputs.shape[-1] == 1:
        return _TASKS["regression"]
    return _TASKS["token_classification" if outputs.dim() == 3 else "classification"]


def _check_shape(labels: Tensor, shape: torch.Size) -> None:
    if labels.shape != shape:
        raise ArgumentError(
            "labels",
            expected=f"shape {tuple(shape)}",
            got=f"shape {tuple(labels.shape)}",
            remedy="Reshape them.",
        )


def _check_integer(labels: Tensor) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise _wrong_label_type("integers (class indices)", labels)


def _check_range(labels: Tensor, classes: int) -> None:
    if not labels.numel():
        return
    low, high = (int(bound) for bound in torch.stack(labels.aminmax()).tolist())
    if low < 0 or high >= classes:
        raise ArgumentError(
            "labels",
            expected=f"classes 0 … {classes - 1}, since the head has {classes} outputs",
            got=f"values between {low} and {high}",
            remedy="Give the head one output per class, or map the labels to 0, 1, ….",
        )


def _wrong_label_type(expected: str, labels: Tensor) -> ArgumentTypeError:
    return ArgumentTypeError(
        "labels", expected=expected, got=str(labels.dtype), remedy="Convert them, or name another task."
    )


def _wrong_outputs(expected: str, outputs: Tensor, remedy: str) -> ArgumentError:
    return ArgumentError("outputs of the head", expected=expected, got=f"shape {tuple(outputs.shape)}", remedy=remedy)
