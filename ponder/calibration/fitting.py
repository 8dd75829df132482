"""What is fitted on records: temperatures of the steps (Guo et al. 2017), and gates, a linear exit head a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ponder._utils.arrays import softmax
from ponder._utils.checks import check_choice, check_int, check_real
from ponder.calibration.records import Bools, Floats, Record, as_array, check_record, serves, step_outputs
from ponder.errors import ArgumentError
from ponder.policies.gate import Gate, default_signals
from ponder.policies.halting import Quantile
from ponder.tasks import hard_labels

__all__ = ["fit_gate", "fit_temperatures", "staying_pays"]

Target = Literal["gain", "error", "agreement", "unsettled"]
_NOISE = 1e-6
_RIDGE = 1.0  # the penalty |w|² / 2 on weights of scaled signals, as in scikit-learn's default


def fit_temperatures(trajectory: Record) -> tuple[float, ...]:
    r"""Return the temperature T_n of each step that gives softmax(outputs_n / T_n) the least negative log-likelihood.

    Guo et al. 2017, Section 4.2, once for each step. In β = 1/T the likelihood is concave, and its slope
    mean(Σ_c p_c z_c − z_y) grows with β, so bisection finds the optimum; T is kept within [0.01, 100]. A row takes no
    part in a step at which its outputs are not finite. Choose and certify a threshold on *other* labelled rows.

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


def fit_gate(
    trajectory: Record,
    target: Target = "gain",
    delta: float = 0.0,
    floor: int = 1,
    *,
    shared: bool = False,
    signals: Sequence[str] | None = None,
    threshold: float = 0.5,
) -> Gate:
    r"""Fit an exit policy to a frozen model: at each step, will any later step do better?

    For each step n < N, a logistic regression learns the probability of an event that hindsight shows, and the gate
    lets a row go where it is below `threshold`, which `ponder.calibrate` then chooses on *other* rows:

    * ``"gain"``: min_{m>n} ℓ_m < ℓ_n − δ, some later step has a loss that is lower by more than δ. Losses of classes
      mostly fall a little from step to step, so that δ = 0 says yes nearly everywhere: ask for 0.1 or more;
    * ``"error"``: this step is wrong and some later step right;
    * ``"agreement"``: the answer is not that of full depth, which needs no labels;
    * ``"unsettled"``: the answer is not right yet, or will not stay so. A row that is never right runs to the end.

    The idea is that of Ouro's second stage (Zhu et al. 2025, arXiv 2510.25741).

    Args:
        trajectory: A full-depth run on held-out rows.
        target: The event.
        delta: δ ≥ 0, for ``"gain"`` alone.
        floor: First step at which a row may exit.
        shared: One regression for all steps, for a shared step that may run for more steps than the trajectory has.
        signals: Names from `policies.gate.GATE_SIGNALS`; what the trajectory has where None.
        threshold: Probability below which a row exits.

    Example:
        >>> gate = fit_gate(trajectory, target="error")  # in earnest: on rows that train nothing else
        >>> trajectory.replay(gate).exit_step[:3]
        tensor([1, 2, 3])
    """
    check_record(trajectory)
    check_real("delta", delta)
    check_int("floor", floor, 1, trajectory.num_steps)
    check_choice("target", target, ("gain", "error", "agreement", "unsettled"))
    if signals is None:
        signals = default_signals(trajectory.meaning.classes, serves(trajectory, Quantile(0.5)))
    read = _signals(trajectory, tuple(signals))
    finite = np.isfinite(read).all((0, 2))  # other rows never exit, so they teach nothing
    pays = staying_pays(trajectory, target, delta)[finite, :-1].T
    read = read[:, finite]
    if not read.size:
        raise ArgumentError(
            "trajectory",
            expected="at least two steps, and rows whose outputs are finite",
            got="none",
            remedy="Record more.",
        )
    if shared:
        read, pays = read.reshape(1, -1, read.shape[-1]), pays.reshape(1, -1)
    tables = tuple(_logistic(x, y) for x, y in zip(read, pays, strict=True))
    steps = None if shared else trajectory.num_steps
    return Gate(steps, tuple(signals), tables, threshold, floor, target, float(delta))


def staying_pays(trajectory: Record, target: Target, delta: float = 0.0) -> Bools:
    """Return the event of each row and step in hindsight, `(rows, steps)`; arguments as for `fit_gate`."""
    if target == "agreement":
        return ~trajectory.agreement()
    gains = target == "gain"
    losses = trajectory.losses(trajectory.meaning.losses, -np.inf) if gains else 1.0 - trajectory.correct()
    if target == "unsettled":
        pays = np.maximum.accumulate(losses[:, ::-1], axis=1)[:, ::-1] > 0  # wrong here or at a later step
    else:
        later = np.minimum.accumulate(losses[:, ::-1], axis=1)[:, ::-1]
        pays = np.roll(later, -1, axis=1) < losses - delta
    pays[:, -1] = False
    return pays


def _signals(trajectory: Record, names: tuple[str, ...]) -> Floats:
    """Return what a gate reads at each step but the last, `(steps − 1, rows, signals)`."""
    reader = Gate(None, names, ((0.0,),))
    trajectory.check(reader)
    state, read = reader.init(trajectory.batch), []
    for _, view in zip(range(trajectory.num_steps - 1), trajectory.views(reader.needs), strict=False):
        values, state = reader.read(view, state)
        read.append(as_array(values))
    return np.stack(read) if read else np.empty((0, len(trajectory), len(names)))


def _logistic(x: Floats, y: Bools) -> tuple[float, ...]:
    """Return weights and bias on the raw signals, by Newton's method on signals of unit variance with a ridge."""
    if y.all() or not y.any():  # nothing to fit: the log-odds with half a row on either side
        return (*np.zeros(x.shape[1]).tolist(), float(np.log((y.sum() + 0.5) / ((~y).sum() + 0.5))))
    centre, scale = x.mean(0), x.std(0)
    varies = scale > _NOISE * np.abs(centre)  # differences below are rounding, which other rows do not share
    scale = np.where(varies, scale, 1.0)
    design = np.column_stack([np.where(varies, (x - centre) / scale, 0.0), np.ones(len(x))])
    ridge = np.append(np.full(x.shape[1], _RIDGE), 1e-9)

    def loss(w: Floats) -> float:
        return float(np.logaddexp(0.0, np.where(y, -1.0, 1.0) * (design @ w)).sum() + (ridge * w * w).sum() / 2)

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
