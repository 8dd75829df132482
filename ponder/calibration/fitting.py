"""Gates fitted on a record: a logistic regression for each step, not one threshold for all.

`fit_gate` reads the signals of each step from the record, and `_logistic` fits the weights by which
`ponder.policies.gate.Gate` predicts whether the answer will still change.
"""

from __future__ import annotations

from itertools import islice

import numpy as np

from ponder.calibration.records import Bools, Floats, Record, as_array, check_record
from ponder.policies.gate import Gate

__all__ = ["fit_gate"]

_NOISE = 1e-6
_RIDGE = 1.0  # the penalty |w|² / 2 on weights of scaled signals, as in scikit-learn's default


def fit_gate(trajectory: Record) -> Gate:
    """Fit a gate, which predicts at each step whether the answer at full depth will be another.

    It needs no labels. Choose and certify its threshold on *other* rows. On GLUE, gates were as
    good as confidence.

    Args:
        trajectory: A full-depth run of a classifier on held-out rows.

    Example:
        >>> gate = fit_gate(trajectory)  # in practice on rows that train nothing else
        >>> trajectory.replay(gate).exit_step[:3]
        tensor([1, 2, 3])
    """
    check_record(trajectory)
    early_steps = trajectory.num_steps - 1
    untrained = ((0.0,) * 5,) * early_steps
    gate = Gate(untrained)
    trajectory.check(gate)
    differs = ~trajectory.agreement()
    state = gate.init(trajectory.batch)
    tables = []
    for step, view in enumerate(islice(trajectory.views(gate.needs), early_steps)):
        signals, state = gate.read(view, state)
        values = as_array(signals)
        # Rows with a signal that is not finite never exit, so they must not teach.
        finite = np.isfinite(values).all(axis=1)
        tables.append(_logistic(values[finite], differs[finite, step]))
    return Gate(tuple(tables))


def _logistic(signals: Floats, differs: Bools) -> tuple[float, ...]:
    """Fit a logistic regression with a ridge, and return weights and bias on the raw signals.

    Args:
        signals: Signals of the rows, `(rows, signals)`, all finite.
        differs: Whether the answer at full depth is another, `(rows,)`.
    """
    if differs.all() or not differs.any():
        # There is nothing to separate: the bias is the log-odds with half a row added to each side.
        odds = (differs.sum() + 0.5) / ((~differs).sum() + 0.5)
        return (*np.zeros(signals.shape[1]).tolist(), float(np.log(odds)))
    centre = signals.mean(axis=0)
    scale = signals.std(axis=0)
    # A signal that varies less than this varies by rounding, which other rows do not share.
    varies = scale > _NOISE * np.abs(centre)
    scale = np.where(varies, scale, 1.0)
    scaled = np.where(varies, (signals - centre) / scale, 0.0)
    design = np.column_stack([scaled, np.ones(len(signals))])
    ridge = np.append(np.full(signals.shape[1], _RIDGE), 1e-9)
    solution = _newton(design, differs, ridge)
    weights = solution[:-1] / scale
    return (*weights.tolist(), float(solution[-1] - weights @ centre))


def _newton(design: Floats, differs: Bools, ridge: Floats) -> Floats:
    """Minimise the logistic loss with a ridge by Newton's method with step halving."""
    signs = np.where(differs, -1.0, 1.0)

    def loss(weights: Floats) -> float:
        fit = np.logaddexp(0.0, signs * (design @ weights)).sum()
        return float(fit + (ridge * weights * weights).sum() / 2)

    weights: Floats = np.zeros(design.shape[1])
    for _ in range(100):
        # A sigmoid by tanh, which does not overflow.
        chance = 0.5 + 0.5 * np.tanh(0.5 * (design @ weights))
        slope = design.T @ (chance - differs) + ridge * weights
        curvature = (design.T * (chance * (1 - chance))) @ design + np.diag(ridge)
        step = np.linalg.solve(curvature, slope)
        while loss(weights - step) > loss(weights) + 1e-12 * abs(loss(weights)):
            step /= 2.0
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    return weights
