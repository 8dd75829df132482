"""What a model answers: the thing that two steps can agree on, and that can be right or wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder.errors import ArgumentError

__all__ = ["agreement", "answers", "correct"]


def answers(outputs: Tensor, task: str | None) -> Tensor:
    """The answers behind outputs: numbers in regression, a set in multilabel, the most probable class elsewhere.

    Args:
        outputs: `(…, outputs)`, of one step or of several.
        task: Name of the task; None is read as classification.

    Returns:
        `(…, outputs)` in regression (at least float32) and in multilabel (bool), else `(…)` long.
    """
    if task == "regression":
        return at_least_float32(outputs)
    if task == "multilabel":
        return outputs > 0
    if not outputs.dim() or outputs.shape[-1] < 2:
        raise ArgumentError(
            "outputs",
            expected="class logits, the last dimension at least 2",
            got=f"shape {tuple(outputs.shape)} and task {task!r}",
            remedy="Build the model with task='regression' if it answers with one number.",
        )
    return outputs.argmax(-1)


def agreement(outputs: Tensor, task: str | None) -> Tensor:
    """Whether the answer of each step is that of the last, `(batch, steps)` bool, from outputs `(batch, steps, …)`.

    Several labels (or tokens) agree when all do.
    """
    given = answers(outputs, task)
    return _all_of(given == given[:, -1:])


def correct(outputs: Tensor, labels: Tensor, task: str | None) -> Tensor:
    """Whether the answer of each step is right, `(batch, steps)` bool; tokens labelled −100 are not looked at."""
    given = answers(outputs, task)
    if task == "multilabel":
        return _all_of(given == (labels.unsqueeze(1) > 0.5))
    right = given == labels.unsqueeze(1)
    if task == "token_classification":
        right = right | (labels.unsqueeze(1) < 0)
    return _all_of(right)


def _all_of(each: Tensor) -> Tensor:
    return each.flatten(2).all(2) if each.dim() > 2 else torch.as_tensor(each)
