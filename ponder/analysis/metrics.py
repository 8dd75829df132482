"""Metrics: how good a model's predictions are, at every step of a trajectory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from math import nan
from typing import Literal

import torch
from torch import Tensor

from ponder.errors import ArgumentError, ArgumentTypeError, PonderError
from ponder.parts.recording import Recording
from ponder.parts.tasks import Custom, Task, infer_task
from ponder.parts.tasks.classification import Unnamed
from ponder.parts.tasks.labels import check_no_broadcast, labelled_part

__all__ = ["Metric", "MetricLike", "as_metric", "checked_labels"]

MetricLike = Literal["accuracy", "exact_match", "negative_squared_error"] | Callable[[Tensor, Tensor], float]


@dataclass(frozen=True, eq=False)
class Metric:
    """A score of predictions against labels, the higher the better.

    Args:
        name: Its name in tables and plots.
        per_row: Values of every row and step, `(batch, steps)` float64, where the score is their mean; else None.
        function: (outputs, labels) → score, where it is not a mean over rows: of the rows that have a label, or, with
            an answer a token, of the tokens that do.
        labels: Labels, batch first, where there is a function.
        task: What they mean, likewise.
    """

    name: str
    per_row: Tensor | None
    function: Callable[[Tensor, Tensor], float] | None = None
    labels: Tensor | None = None
    task: Task = field(default_factory=Custom)

    def of_exits(self, trajectory: Recording, exit_step: Tensor) -> float:
        """The score of the predictions at the exits, `exit_step` `(batch,)`."""
        rows = torch.arange(len(trajectory), device=exit_step.device)
        assert self.function is not None
        assert self.labels is not None
        outputs = trajectory.outputs[rows, exit_step - 1]
        return _number(self.function(*labelled_part(self.task, outputs, self.labels, trajectory.mask)))


def as_metric(metric: MetricLike | None, trajectory: Recording) -> Metric | None:
    """The metric that a user names or passes; None gives the task's own, or None where there are no labels.

    Raises:
        ArgumentError: An unknown name, no labels, or a metric that does not fit the task.
    """
    task = trajectory.meaning
    if metric is None and (trajectory.labels is None or task.metric is None):
        return None
    if trajectory.labels is None:
        raise ArgumentError(
            "metric",
            expected="a trajectory with labels",
            got="a trajectory without",
            remedy="Record them: model.unroll(inputs, labels=labels).",
        )
    if callable(metric):
        meaning, labels = checked_labels(trajectory, trajectory.labels)
        if unanswered := int((~trajectory.answered()).any(1).sum()):
            warnings.warn(
                f"metric: {unanswered} of {len(trajectory)} rows are NaN at some step. The library's own scores count "
                "them as wrong there; yours is given the NaN, whose argmax is class 0.",
                stacklevel=3,
            )
        if len(trajectory):
            given = labelled_part(meaning, trajectory.outputs[:, -1], labels, trajectory.mask)
            check_no_broadcast(metric, meaning, *given)
        return Metric(getattr(metric, "__name__", "score"), None, metric, labels, meaning)
    name = "exact_match" if task.exact_match else task.metric
    if name is not None and metric in (None, name, task.metric):
        if not task.comparable:
            labels = task.check(trajectory.outputs[:, -1], trajectory.labels)
            return Metric(name, task.scores(trajectory.outputs, labels))
        scores = task.scores(trajectory.read_outputs(), trajectory.counted_labels())
        without = 0.0 if task.metric == "accuracy" else nan  # NaN is never right; of other scores 0 may be the best
        return Metric(name, scores.masked_fill(~trajectory.answered(), without))
    raise ArgumentError(
        "metric",
        expected="a callable (outputs, labels) -> float, 'accuracy' (classes), 'exact_match' (tokens, several labels), "
        "or 'negative_squared_error' (numbers)",
        got=f"{metric!r} with the task {trajectory.task!r}",
        remedy="Choose the one that fits the task.",
    )


def checked_labels(trajectory: Recording, labels: Tensor) -> tuple[Task, Tensor]:
    """The task, and the labels as it takes them; labels that do not fit it are those of the function's owner."""
    outputs, task = trajectory.outputs[:, -1], trajectory.meaning
    labels = labels.to(outputs.device)
    if isinstance(task, Unnamed):
        task = infer_task(outputs, labels)
    try:
        return task, task.check(outputs, labels)
    except PonderError:
        return Custom(), labels


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(
            "metric", expected="a callable that returns one number", got=repr(value), remedy="Reduce over the rows."
        ) from error
