"""What is measured on a task, and the one number that is made of it, as GLUE does.

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

from benchmarks.tasks import Task
from ponder.errors import ArgumentError, NonFiniteError

__all__ = ["answers", "measure", "pack", "score", "unpack"]

_Array = NDArray[Any]


def answers(task: Task, outputs: _Array) -> _Array:
    """Predictions, `(examples,)`, from outputs `(examples, labels)`.

    Raises:
        NonFiniteError: They hold NaN or infinity: that of which nothing is predicted would be class 0.
    """
    if not np.isfinite(outputs).all():
        raise NonFiniteError(f"{task.name}: the model's outputs hold NaN or infinity. Train it with a lower rate.")
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
    result = {name: float(of_row[0]) for name, of_row in measure(task, predictions[None], labels[None]).items()}
    result["score"] = sum(result.values()) / len(result)
    if task.outside is not None and (labels == task.outside).any():
        result["out_of_scope_recall"] = float(np.mean(predictions[labels == task.outside] == task.outside))
    return result


def measure(task: Task, predictions: _Array, labels: _Array) -> dict[str, _Array]:
    """Every metric, `(samples,)`, of many samples at once: predictions and labels of shape `(samples, examples)`."""
    inside = np.ones_like(labels, dtype=bool) if task.outside is None else labels != task.outside
    return {name: _METRICS[name](predictions, labels, inside) for name in task.metrics}


def pack(task: Task, predictions: _Array) -> str:
    """Predictions as one line of text, which is how a result keeps them: class numbers, or scores to five digits."""
    return " ".join(f"{value:.5g}" if task.kind == "regression" else str(int(value)) for value in predictions)


def unpack(task: Task, text: str) -> _Array:
    """Inverse of `pack`."""
    return np.array(text.split(), dtype=np.float64 if task.kind == "regression" else np.int64)


def _check_values(task: Task, argument: str, values: _Array, remedy: str) -> None:
    if task.kind == "regression":
        valid, expected = np.isfinite(values), "finite numbers"
    else:
        valid, expected = np.isin(values, np.arange(task.num_labels)), f"class numbers 0 to {task.num_labels - 1}"
    if not valid.all():
        row = int(np.argmin(valid))
        got = f"{values[row]} at row {row}"
        raise ArgumentError(argument, expected=f"{expected} ({task.name})", got=got, remedy=remedy)


def _ratio(above: _Array, below: _Array) -> _Array:
    """0 where it is not defined."""
    ratio: _Array = np.divide(above, below, out=np.zeros_like(below, dtype=float), where=below != 0)
    return ratio


def _accuracy(p: _Array, y: _Array, inside: _Array) -> _Array:
    return _ratio(((p == y) & inside).sum(1), inside.sum(1))


def _f1(p: _Array, y: _Array, _: _Array) -> _Array:
    """F1 of two classes, class 1 being the positive one."""
    right, asked, told = (((p == 1) & (y == 1)).sum(1), (y == 1).sum(1), (p == 1).sum(1))
    return _ratio(2.0 * right, 1.0 * (asked + told))


def _matthews(p: _Array, y: _Array, _: _Array) -> _Array:
    """Correlation of any number of classes (Gorodkin 2004, R_K), which is Matthews' for two."""
    classes = np.union1d(p, y)
    told, given = (np.stack([(each == name).sum(1) for name in classes], 1).astype(float) for each in (p, y))
    rows, right = float(p.shape[1]), (p == y).sum(1).astype(float)
    above = right * rows - (told * given).sum(1)
    below = (rows**2 - (told**2).sum(1)) * (rows**2 - (given**2).sum(1))
    return _ratio(above, np.sqrt(below))


def _pearson(p: _Array, y: _Array, _: _Array) -> _Array:
    correlation: _Array = np.clip((_standard(p) * _standard(y)).sum(1), -1.0, 1.0)
    return correlation


def _spearman(p: _Array, y: _Array, inside: _Array) -> _Array:
    return _pearson(stats.rankdata(p, axis=1), stats.rankdata(y, axis=1), inside)


def _standard(values: _Array) -> _Array:
    """Scaled to mean 0 and length 1; all 0 where the spread is below the rounding of the values themselves."""
    centred = values - values.mean(1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    varies = lengths > 1e-12 * np.linalg.norm(values, axis=1, keepdims=True)
    scaled: _Array = np.divide(centred, lengths, out=np.zeros_like(centred), where=varies)
    return scaled


_METRICS: dict[str, Callable[[_Array, _Array, _Array], _Array]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
