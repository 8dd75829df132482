"""Labels: whether they fit the outputs, which rows have one, and which class each is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ponder._utils.numerics import at_least_float32
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.tasks.base import IGNORED_LABEL, Task, all_parts, fits_positions

__all__ = [
    "check_finite",
    "check_integer",
    "check_labelled",
    "check_range",
    "check_shape",
    "checked_probabilities",
    "hard_labels",
    "labelled_part",
    "right_where_known",
    "wrong_label_type",
    "wrong_outputs",
]


def hard_labels(labels: Tensor) -> Tensor:
    """Classes, of labels that may be probabilities of classes.

    Example:
        >>> hard_labels(torch.tensor([[0.1, 0.9], [0.8, 0.2]]))
        tensor([1, 0])
    """
    return labels.argmax(-1) if labels.is_floating_point() else labels


def labelled_part(task: Task, outputs: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The outputs, at least float32, and the labels of the rows that have one; with an answer a token, of the tokens.

    Args:
        task: What they mean.
        outputs: Outputs of one step, `(batch, …)`.
        labels: Checked labels, batch first.
        mask: Which positions count, `(batch, length)` bool; None for all.

    Example:
        >>> from ponder.parts.tasks.labels import labelled_part
        >>> labelled_part(task_named("classification"), torch.eye(3), torch.tensor([2, -100, 0]), None)
        (tensor([[1., 0., 0.],
                [0., 0., 1.]]), tensor([2, 0]))
    """
    outputs = at_least_float32(task.without_padding(outputs, mask))
    if not task.per_token:
        labels = task.inside(labels, mask)
        kept = task.labelled(labels)
        return (outputs, labels) if kept is None else (outputs[kept], labels[kept])
    kept = labels != IGNORED_LABEL
    if mask is not None and fits_positions(mask, outputs):
        kept = kept & mask
    return outputs[kept], labels[kept]


def check_no_broadcast(metric: Callable[[Tensor, Tensor], Any], task: Task, outputs: Tensor, labels: Tensor) -> None:
    """Refuse a metric of numbers that holds the output of each row, `(rows, 1)`, against the labels of all, `(rows,)`.

    Args:
        metric: The function (outputs, labels) → number.
        task: What they mean.
        outputs: Outputs of one step.
        labels: Checked labels.

    Raises:
        ArgumentError: It gives another number where outputs have the shape of the labels.
    """
    one = outputs.dim() == labels.dim() + 1 and outputs.shape[-1] == 1
    if not task.numbers or not one or len(labels) < 2:
        return
    try:
        beside = float(metric(outputs.reshape(labels.shape), labels))
    except Exception:  # it knows the shape that it is given
        return
    own = float(metric(outputs, labels))
    alike = own == beside or math.isnan(own) or math.isclose(own, beside, rel_tol=1e-4, abs_tol=1e-6)
    if not alike:
        raise ArgumentError(
            "metric",
            expected=f"a function of outputs {tuple(outputs.shape)} and labels {tuple(labels.shape)}",
            got=f"{own:.4g} of these, and {beside:.4g} of outputs of the shape of the labels: PyTorch broadcasts the "
            "first, and each row is held against all labels",
            remedy="Write outputs[:, 0], say.",
        )


def check_labelled(task: Task, labels: Tensor) -> None:
    """Refuse rows without a label where rows are counted as right or wrong: they are neither.

    Args:
        task: What the labels mean.
        labels: Labels, batch first; those of padding are ignored ones.
    """
    labelled = task.labelled(labels)
    if labelled is not None and not bool(labelled.all()):
        raise ArgumentError(
            "labels",
            expected="a label for every row, where rows are counted as right or wrong",
            got=f"{IGNORED_LABEL} for {int((~labelled).sum())} of {len(labelled)} rows",
            remedy="Record the rows that have a label.",
        )


def right_where_known(task: Task, outputs: Tensor, labels: Tensor) -> Tensor:
    """Whether each step is right in every part that has a label, `(batch, steps)` bool; a row has at least one."""
    check_labelled(task, labels)
    right = task.predictions(outputs) == labels.unsqueeze(1)
    return all_parts(right | (labels.unsqueeze(1) == IGNORED_LABEL), 2)


def check_shape(labels: Tensor, shape: torch.Size) -> None:
    """Refuse labels of another shape than a task needs."""
    if labels.shape != shape:
        raise ArgumentError(
            "labels",
            expected=f"shape {tuple(shape)}",
            got=f"shape {tuple(labels.shape)}",
            remedy="Reshape them.",
        )


def check_integer(labels: Tensor) -> None:
    """Refuse labels that index no classes or positions."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise wrong_label_type("integers (class indices)", labels)


def checked_probabilities(labels: Tensor) -> Tensor:
    """Soft labels, or an error where they are no probabilities (to a hundredth, since many are kept in half)."""
    if labels.numel() and not bool(((labels >= 0).all(-1) & ((labels.sum(-1) - 1.0).abs() < 0.01)).all()):
        raise ArgumentError(
            "labels",
            expected="probabilities of the classes that sum to 1, in floating-point labels (batch, classes)",
            got=f"values between {float(labels.min()):g} and {float(labels.max()):g}, or other sums",
            remedy="Pass logits.softmax(-1), say, or name the task: task='multilabel' or task='regression'.",
        )
    return labels


def check_range(labels: Tensor, classes: int) -> None:
    """Refuse what is neither a class nor the ignored label."""
    if not labels.numel() or torch._C._functorch.is_functorch_wrapped_tensor(labels):
        return
    counted = torch.where(labels == IGNORED_LABEL, torch.zeros_like(labels), labels)
    low, high = torch.stack(counted.aminmax()).tolist()
    if low < 0 or high >= classes:
        raise ArgumentError(
            "labels",
            expected=f"classes 0 … {classes - 1}, since the head has {classes} outputs, or {IGNORED_LABEL} for none",
            got=f"values between {low} and {high}",
            remedy="Give the head one output per class, or map the labels to 0, 1, ….",
        )


def check_finite(labels: Tensor) -> None:
    """Refuse numbers that are none: one of them would make all weights NaN."""
    if not _has_values(labels) or bool(labels.isfinite().all()):
        return
    rows = (~labels.isfinite()).reshape(len(labels), -1).any(1)
    raise ArgumentError(
        "labels",
        expected="finite numbers",
        got=f"NaN or infinity in {int(rows.sum())} of {len(rows)} rows",
        remedy="Leave those rows out: a number that is not known cannot be taught.",
    )


def _has_values(labels: Tensor) -> bool:
    """Whether values can be looked at: not while a call is traced, without memory, or for each row by `torch.func`."""
    if torch.compiler.is_compiling() or labels.is_meta or isinstance(labels, FakeTensor):
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(labels)


def wrong_label_type(expected: str, labels: Tensor) -> ArgumentTypeError:
    """The error of labels of another type than a task needs."""
    return ArgumentTypeError(
        "labels", expected=expected, got=str(labels.dtype), remedy="Convert them, or name another task."
    )


def wrong_outputs(expected: str, outputs: Tensor, remedy: str) -> ArgumentError:
    """The error of a head whose outputs are none of a task."""
    return ArgumentError("outputs of the head", expected=expected, got=f"shape {tuple(outputs.shape)}", remedy=remedy)
