"""Metrics: how good a model's predictions are, at every step of a trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.recording import Recording

__all__ = ["Metric", "MetricLike", "as_metric"]

MetricLike = Literal["accuracy", "negative_squared_error"] | Callable[[Tensor, Tensor], float]


@dataclass(frozen=True, eq=False)
class Metric:
    """A score of predictions against labels, the higher the better.

    Args:
        name: Its name in tables and plots.
        per_row: Values of every row and step, `(batch, steps)` float64, where the score is their mean; else None.
        function: (outputs `(batch, …)`, labels) → score, where it is not a mean over rows.
        labels: Labels, batch first.
    """

    name: str
    per_row: Tensor | None
    function: Callable[[Tensor, Tensor], float] | None = None
    labels: Tensor | None = None

    def of_exits(self, trajectory: Recording, exit_step: Tensor) -> float:
        """The score of the predictions at the exits, `exit_step` `(batch,)`."""
        rows = torch.arange(len(trajectory), device=exit_step.device)
        if self.per_row is not None:
            return float(self.per_row[rows, exit_step - 1].mean())
        assert self.function is not None
        assert self.labels is not None
        value = self.function(trajectory.outputs[rows, exit_step - 1], self.labels)
        return _number(value)


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
        return Metric(getattr(metric, "__name__", "score"), None, metric, trajectory.labels)
    if task.metric is not None and metric in (None, task.metric):
        if not task.comparable:
            labels = task.check(trajectory.outputs[:, -1], trajectory.labels)
            return Metric(task.metric, task.scores(trajectory.outputs, labels))
        scores = task.scores(trajectory.read_outputs(), trajectory.counted_labels())
        return Metric(task.metric, scores.masked_fill(~trajectory.answered(), 0.0))  # NaN is never right
    raise ArgumentError(
        "metric",
        expected="a callable (outputs, labels) -> float, 'accuracy' (classes), or 'negative_squared_error' (numbers)",
        got=f"{metric!r} with the task {trajectory.task!r}",
        remedy="Choose the one that fits the task.",
    )


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(
            "metric", expected="a callable that returns one number", got=repr(value), remedy="Reduce over the rows."
        ) from error
