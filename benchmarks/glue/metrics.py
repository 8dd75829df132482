"""The metrics of GLUE, and the one number that GLUE makes of them.

The score of a task is the mean of its metrics: Matthews correlation for CoLA; accuracy and F1 of the positive class for
MRPC and QQP; Pearson and Spearman correlation for STS-B; accuracy elsewhere. The score of MNLI is the mean over its
matched and mismatched split. A class that a task reports apart (out of scope) takes no part in the score.

A correlation with something constant is undefined (0/0). It is reported as 0.0, since constant answers carry no
information, so that an untrained or a collapsed model has a number and raises no warning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

from benchmarks.tasks import Task
from ponder.errors import ArgumentError

__all__ = ["answers", "score"]

_Array = NDArray[Any]


def answers(task: Task, outputs: _Array) -> _Array:
    """Predictions, `(examples,)`, from outputs `(examples, labels)`."""
    predicted: _Array = outputs[:, 0] if task.kind == "regression" else outputs.argmax(-1)
    return predicted


def score(task: Task, predictions: _Array, labels: _Array) -> dict[str, float]:
    """Measure predictions against labels.

    Returns:
        Every metric of the task by its name, each in [-1, 1], and under `"score"` their mean; where the task has a
        class that is reported apart, the share of its rows that were told, under `"out_of_scope_recall"`.

    Example:
        >>> from benchmarks import tasks
        >>> score(tasks.get("RTE"), np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0]))
        {'accuracy': 0.75, 'score': 0.75}
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.ndim != 1 or predictions.shape != labels.shape or not len(labels):
        raise ArgumentError(
            "predictions",
            expected="one prediction for each label, and at least one: two arrays of shape (examples,)",
            got=f"predictions of shape {predictions.shape} and labels of shape {labels.shape}",
            remedy="Pass class numbers (the argmax of the logits) or scores, not logits.",
        )
    hidden = "The labels of test splits are hidden (-1): score a labelled split."
    _check_values(task, "predictions", predictions, "Pass what the model answers, one value for each example.")
    _check_values(task, "labels", labels, hidden)
    dtype = np.float64 if task.kind == "regression" else np.int64
    predictions, labels = predictions.astype(dtype), labels.astype(dtype)
    inside = np.ones(len(labels), dtype=bool) if task.outside is None else labels != task.outside
    measured = predictions[inside], labels[inside]
    result: dict[str, float] = {
        name: float(_METRICS[name](*measured)) if inside.any() else 0.0 for name in task.metrics
    }
    result["score"] = sum(result.values()) / len(result)
    if not inside.all():
        result["out_of_scope_recall"] = float(np.mean(predictions[~inside] == task.outside))
    return result


def _check_values(task: Task, argument: str, values: _Array, remedy: str) -> None:
    if task.kind == "regression":
        valid, expected = np.isfinite(values), "finite numbers"
    else:
        valid, expected = np.isin(values, np.arange(task.num_labels)), f"class numbers 0 to {task.num_labels - 1}"
    if not valid.all():
        row = int(np.argmin(valid))
        got = f"{values[row]} at row {row}"
        raise ArgumentError(argument, expected=f"{expected} ({task.name})", got=got, remedy=remedy)


def _pearson(predictions: _Array, labels: _Array) -> float:
    for values in (predictions, labels):
        # A spread below the rounding of the values themselves: dividing by it would only amplify noise.
        if np.linalg.norm(values - values.mean()) <= 1e-12 * np.linalg.norm(values):
            return 0.0
    return float(stats.pearsonr(predictions, labels).statistic)


def _spearman(predictions: _Array, labels: _Array) -> float:
    constant = np.ptp(predictions) == 0 or np.ptp(labels) == 0
    return 0.0 if constant else float(stats.spearmanr(predictions, labels).statistic)


def _matthews(predictions: _Array, labels: _Array) -> float:
    constant = len(np.unique(predictions)) == 1 or len(np.unique(labels)) == 1
    return 0.0 if constant else float(sk.matthews_corrcoef(labels, predictions))


_METRICS: dict[str, Callable[[_Array, _Array], float]] = {
    "accuracy": lambda predictions, labels: float(np.mean(predictions == labels)),
    "f1": lambda predictions, labels: float(sk.f1_score(labels, predictions, zero_division=0.0)),
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
