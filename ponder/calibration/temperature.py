"""Temperatures: one number a step that makes the probabilities of its head mean what they say."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder._utils.bisection import bisect
from ponder._utils.numerics import weighted
from ponder.errors import ArgumentError
from ponder.parts.recording import Recording, check_evaluated, check_has_rows
from ponder.parts.tasks import hard_labels
from ponder.policies.fitted import some_rows
from ponder.policies.tempered import Temperatures

__all__ = ["fit_temperatures"]


def fit_temperatures(trajectory: Recording) -> Temperatures:
    r"""The temperature T_n of each step that gives softmax(outputs_n / T_n) the least negative log-likelihood.

    Guo et al. 2017, Section 4.2, once for each step. In β = 1/T the likelihood is concave, and its slope
    mean(Σ_c p_c z_c − z_y) grows with β, so bisection finds the optimum; T is kept within [0.01, 100]. A soft label
    counts as its most probable class, by which answers are right or wrong. A row takes no part in the temperature of a
    step at which its outputs are not finite.

    Choose a threshold, and certify it, on *other* rows: the temperatures fit these better than any to come.

    Args:
        trajectory: A full-depth run of a classifier on calibration data, with labels.

    Returns:
        One temperature a step, for `policies.Tempered`: a tuple that also keeps some of the rows (`fitted_on`), by
        which no threshold is then chosen, nor anything promised.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0]], [[2.0, 0.0]], [[2.0, 0.0]], [[2.0, 0.0]]])  # right 3 times of 4
        >>> fitted = fit_temperatures(Trajectory(logits, None, torch.arange(4), labels=torch.tensor([0, 0, 0, 1])))
        >>> round(torch.sigmoid(torch.tensor(2.0 / fitted[0])).item(), 3)
        0.75
    """
    check_has_rows(trajectory)
    check_evaluated(trajectory)
    outputs, labels, row_ids = trajectory.outputs.double(), trajectory.labels, trajectory.row_ids
    if labels is None or outputs.dim() != 3 or not trajectory.meaning.one_class:
        raise ArgumentError(
            "trajectory",
            expected="classes (batch, steps, classes), with labels",
            got=f"outputs of shape {tuple(outputs.shape)}, task {trajectory.task!r}, "
            f"{'no labels' if labels is None else 'labels'}",
            remedy="Record a classifier with model.unroll(inputs, labels=labels).",
        )
    labels = trajectory.meaning.check(trajectory.outputs[:, -1], labels)
    labelled = trajectory.meaning.labelled(labels)
    if labelled is not None and not bool(labelled.any()):
        raise ArgumentError(
            "trajectory",
            expected="at least one row with a label",
            got=f"{len(labels)} without",
            remedy="Record labelled rows: model.unroll(inputs, labels=labels).",
        )
    if labelled is not None:
        outputs, labels, row_ids = outputs[labelled], labels[labelled], row_ids[labelled]
    fitted_on = some_rows(Recording(outputs.to(trajectory.outputs.dtype), None, row_ids))  # as precise as they came
    labels = hard_labels(labels)
    of_label = outputs.gather(2, labels[:, None, None].expand(-1, outputs.shape[1], 1)).squeeze(2)
    finite = (outputs < torch.inf).all(2) & of_label.isfinite()  # −inf excludes a class, which may not be the label's
    if not bool(finite.any(0).all()):
        raise ArgumentError(
            "trajectory",
            expected="finite outputs of at least one row at every step",
            got="a step with none",
            remedy="Look for NaN and infinity in the model: PonderWrapper(…, check_finite=True).",
        )
    outputs = outputs.masked_fill(~finite.unsqueeze(2), 0.0)  # where all classes are alike the slope is 0
    of_label = of_label.masked_fill(~finite, 0.0)
    return Temperatures(map(_fit, outputs.unbind(1), of_label.unbind(1)), fitted_on)


def _fit(outputs: Tensor, of_label: Tensor) -> float:
    def falls(log_beta: float) -> bool:
        shares = F.softmax(outputs * 10**log_beta, dim=-1)
        return bool((weighted(shares, outputs).sum(-1) - of_label).mean() <= 0)

    return float(10 ** -bisect(falls, -2.0, 2.0, halvings=60)[0])
