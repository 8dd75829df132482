"""Metrics of a task, and the one score that is made of them, as GLUE does.

The score is the mean of the task's metrics: Matthews correlation for CoLA; accuracy and F1 of the
positive class for MRPC and QQP; Pearson and Spearman correlation for STS-B; accuracy elsewhere. A
class with a number of its own (out of scope) takes no part in the score. A correlation with
something constant, 0/0, is reported as 0.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from benchmarks.tasks import Task
from ponder.errors import NonFiniteError

__all__ = ["answers", "pack", "score"]

_Array = NDArray[Any]


def answers(task: Task, outputs: _Array) -> _Array:
    """Return predictions, `(examples,)`, from outputs `(examples, labels)`.

    Raises:
        NonFiniteError: They hold NaN or infinity, of which the prediction would be class 0.
    """
    if not np.isfinite(outputs).all():
        raise NonFiniteError(
            f"{task.name}: the model's outputs hold NaN or infinity. Train it with a lower rate."
        )
    predicted: _Array = outputs[:, 0] if task.kind == "regression" else outputs.argmax(-1)
    return predicted


def score(task: Task, predictions: _Array, labels: _Array) -> dict[str, float]:
    """Return every metric of the task by its name, each in [-1, 1], and under `"score"` their mean.

    Where the task has a class that is reported separately, its recall stands under
    `"out_of_scope_recall"`.

    Example:
        >>> from benchmarks import tasks
        >>> score(tasks.get("RTE"), np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0]))
        {'accuracy': 0.75, 'score': 0.75}
    """
    predictions = np.asarray(predictions)
    labels = np.asarray(labels)
    inside = np.ones(len(labels), dtype=bool) if task.outside is None else labels != task.outside
    found: dict[str, float] = {
        name: float(_METRICS[name](labels[inside], predictions[inside])) for name in task.metrics
    }
    found["score"] = statistics.fmean(found.values())
    if not inside.all():
        found["out_of_scope_recall"] = float(np.mean(predictions[~inside] == task.outside))
    return found


def pack(task: Task, predictions: _Array) -> str:
    """Return predictions as one line of text: class numbers, or numbers to five digits."""
    return " ".join(
        f"{value:.5g}" if task.kind == "regression" else str(int(value)) for value in predictions
    )


def _correlation(function: Callable[..., Any]) -> Callable[[_Array, _Array], float]:
    def measure(labels: _Array, predictions: _Array) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of something constant, or nearly so
            return float(
                np.nan_to_num(
                    function(predictions.astype(np.float64), labels.astype(np.float64)).statistic
                )
            )

    return measure


_METRICS: dict[str, Callable[[_Array, _Array], float]] = {
    "accuracy": accuracy_score,
    "f1": lambda labels, predictions: f1_score(labels, predictions, zero_division=0),
    "matthews": matthews_corrcoef,
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}
