"""Gates fitted on a record: a logistic regression a step in the place of one threshold."""

from __future__ import annotations

import numpy as np

from ponder.calibration.records import Bools, Floats, Record, as_array, check_record
from ponder.policies.gate import Gate

__all__ = ["fit_gate"]

_NOISE = 1e-6
_RIDGE = 1.0  # the penalty |w|² / 2 on weights of scaled signals, as in scikit-learn's default


def fit_gate(trajectory: Record) -> Gate:
    """Fit a gate: at each step, will the answer at full depth be another?

    It needs no labels. Choose and certify its threshold on *other* rows. On GLUE, gates were as
    good as confidence.

    Args:
        trajectory: A full-depth run of a classifier on held-out rows.

    Example:
        >>> gate = fit_gate(trajectory)  # in earnest: on rows that train nothing else
        >>> trajectory.replay(gate).exit_step[:3]
        tensor([1, 2, 3])
    """
    check_record(trajectory)
    gate = Gate(((0.0,) * 5,) * (trajectory.num_steps - 1))
    differs = ~trajectory.agreement()
    tables = []
    trajectory.check(gate)
    state = gate.init(trajectory.batch)
    for step, view in zip(
        range(trajectory.num_steps - 1), trajectory.views(gate.needs), strict=False
    ):
        signals, state = gate.read(view, state)
        read = as_array(signals)
        finite = np.isfinite(read).all(1)  # other rows never exit, so they teach nothing
        tables.append(_logistic(read[finite], differs[finite, step]))
    return Gate(tuple(tables))


def _logistic(x: Floats, y: Bools) -> tuple[float, ...]:
    """Return weights and bias on the raw signals, by Newton's method with a ridge."""
    if y.all() or not y.any():  # nothing to fit: the log-odds with half a row on either side
        return (*np.zeros(x.shape[1]).tolist(), float(np.log((y.sum() + 0.5) / ((~y).sum() + 0.5))))
    centre = x.mean(0)
    scale = x.std(0)
    varies = scale > _NOISE * np.abs(
        centre
    )  # differences below are rounding, which other rows do not share
    scale = np.where(varies, scale, 1.0)
    design = np.column_stack([np.where(varies, (x - centre) / scale, 0.0), np.ones(len(x))])
    ridge = np.append(np.full(x.shape[1], _RIDGE), 1e-9)

    def loss(w: Floats) -> float:
        return float(
            np.logaddexp(0.0, np.where(y, -1.0, 1.0) * (design @ w)).sum()
            + (ridge * w * w).sum() / 2
        )

    w = np.zeros(design.shape[1])
    for _ in range(100):
        p = 0.5 + 0.5 * np.tanh(0.5 * (design @ w))
        slope = design.T @ (p - y) + ridge * w
        step = np.linalg.solve((design.T * (p * (1 - p))) @ design + np.diag(ridge), slope)
        while loss(w - step) > loss(w) + 1e-12 * abs(loss(w)):
            step /= 2.0
        w = w - step
        if np.abs(step).max() < 1e-9:
            break
    weights = w[:-1] / scale
    return (*weights.tolist(), float(w[-1] - weights @ centre))
