"""What a service says of a row: its label and scores, or its numbers, and the step that answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder.errors import NonFiniteError, PonderError
from ponder.inference.streaming import StreamOutput
from ponder.parts.tasks import Task

__all__ = ["answer_of"]


def answer_of(task: Task, labels: Sequence[str], answer: StreamOutput, *, truncated: bool) -> dict[str, Any]:
    """One text's part of a response, as plain JSON.

    Args:
        task: What outputs mean.
        labels: Names of the classes.
        answer: What the batcher gave.
        truncated: Whether the text was cut.

    Raises:
        NonFiniteError: The outputs hold NaN or infinity of which no score can be made; −∞ at a class is the score 0.
        PonderError: There is not a name for each class.

    Example:
        >>> from torch import tensor
        >>> from ponder.parts.tasks import task_named
        >>> answer = StreamOutput(tensor([0.0, 0.0]), 3)
        >>> answer_of(task_named("classification"), ["no", "yes"], answer, truncated=False)
        {'label': 'no', 'score': 0.5, 'scores': {'no': 0.5, 'yes': 0.5}, 'exit_step': 3, 'overdue': False, \
'truncated': False}
    """
    output = at_least_float32(answer.output.detach().cpu())
    scores = output if task.numbers else output.softmax(-1) if task.classes else output.sigmoid()
    if bool(output.isnan().any()) or not bool(scores.isfinite().all()):
        raise NonFiniteError("the model's output for a text is not finite.")
    told = read_outputs(task)(task, labels, output)
    return {**told, "exit_step": answer.exit_step, "overdue": answer.timed_out, "truncated": truncated}


def read_outputs(task: Task) -> Callable[[Task, Sequence[str], Tensor], Mapping[str, Any]]:
    """How outputs of a task are told: numbers, several labels, or one of several classes."""
    if task.numbers:
        return _numbers
    return _one_class if task.classes else _several_labels


def _one_class(task: Task, labels: Sequence[str], output: Tensor) -> dict[str, Any]:
    shares, place = output.softmax(-1).tolist(), int(task.predictions(output))
    scores = _named(labels, shares)
    return {"label": labels[place], "score": shares[place], "scores": scores}


def _several_labels(task: Task, labels: Sequence[str], output: Tensor) -> dict[str, Any]:
    shares, chosen = output.sigmoid().tolist(), task.predictions(output).bool().tolist()
    scores = _named(labels, shares)
    return {"labels": [label for label, there in zip(labels, chosen, strict=True) if there], "scores": scores}


def _named(labels: Sequence[str], shares: Sequence[float]) -> dict[str, float]:
    if len(shares) != len(labels):
        raise PonderError(
            f"the model has {len(shares)} classes, and {len(labels)} names for them. Give ServedModel a label for each."
        )
    return dict(zip(labels, shares, strict=True))


def _numbers(task: Task, labels: Sequence[str], output: Tensor) -> dict[str, Any]:
    values = output.flatten().tolist()
    return {"value": values[0]} if len(values) == 1 else {"values": values}
