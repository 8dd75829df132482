"""Temperatures: one number a step that makes the probabilities of its head mean what they say."""

from __future__ import annotations

from typing import Any

import numpy as np

from ponder._utils.arrays import softmax
from ponder.calibration.records import Floats, Record, check_record, step_outputs
from ponder.errors import ArgumentError
from ponder.tasks import hard_labels

__all__ = ["fit_temperatures"]


def fit_temperatures(trajectory: Record) -> tuple[float, ...]:
    r"""Return the temperature T_n of each step that gives softmax(outputs_n / T_n) the least negative log-likelihood.

    Guo et al. 2017, Section 4.2, once for each step. In β = 1/T the likelihood is concave, and its slope
    mean(Σ_c p_c z_c − z_y) grows with β, so bisection finds the optimum; T is kept within [0.01, 100]. A soft label
    counts as its most probable class. A row takes no part in the temperature of a step at which its outputs are not
    finite.

    Choose a threshold, and certify it, on *other* rows: the temperatures fit these better than any to come.

    Args:
        trajectory: A full-depth run of a classifier on calibration data, with labels.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0]], [[2.0, 0.0]], [[2.0, 0.0]], [[2.0, 0.0]]])  # right 3 times of 4
        >>> fitted = fit_temperatures(Trajectory(logits, None, torch.arange(4), labels=torch.tensor([0, 0, 0, 1])))
        >>> round(torch.sigmoid(torch.tensor(2.0 / fitted[0])).item(), 3)
        0.75
    """
    check_record(trajectory)
    if trajectory.labels is None or not trajectory.meaning.one_class:
        raise ArgumentError(
            "trajectory",
            expected="one class a row, with labels",
            got=f"the task {trajectory.meaning.name!r}, {'no ' * (trajectory.labels is None)}labels",
            remedy="Record a classifier with model.unroll(inputs, labels=labels).",
        )
    labels = np.asarray(hard_labels(trajectory.labels))
    labelled = labels >= 0
    return tuple(_fit(outputs[labelled], labels[labelled]) for outputs in step_outputs(trajectory))


def _fit(outputs: Floats, labels: Any) -> float:
    of_label = outputs[np.arange(len(labels)), labels]
    finite = (outputs < np.inf).all(1) & np.isfinite(of_label)  # −inf excludes a class, which may not be the label's
    outputs, of_label = outputs[finite], of_label[finite]
    if not len(outputs):
        return 1.0
    low, high = -2.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2.0
        p = softmax(outputs * 10.0**middle)
        slope = (np.where(p > 0, p * np.where(p > 0, outputs, 0.0), 0.0).sum(1) - of_label).mean()
        low, high = (middle, high) if slope <= 0 else (low, middle)
    return float(10.0**-low)
