"""Temperatures: one number a step that makes the probabilities of its head mean what they say."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.calibration.fresh import check_rows_given
from ponder.errors import ArgumentError
from ponder.parts.recording import Recording

__all__ = ["fit_temperatures"]


def fit_temperatures(trajectory: Recording) -> tuple[float, ...]:
    r"""The temperature T_n of each step that gives softmax(outputs_n / T_n) the least negative log-likelihood.

    Guo et al. 2017, Section 4.2, once for each step. In β = 1/T the likelihood is concave, and its slope
    mean(Σ_c p_c z_c − z_y) grows with β, so bisection finds the optimum; T is kept within [0.01, 100].

    Args:
        trajectory: A full-depth run of a classifier on calibration data, with labels.

    Returns:
        One temperature a step, for `policies.Tempered`.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0]], [[2.0, 0.0]], [[2.0, 0.0]], [[2.0, 0.0]]])  # right 3 times of 4
        >>> fitted = fit_temperatures(Trajectory(logits, None, torch.arange(4), labels=torch.tensor([0, 0, 0, 1])))
        >>> round(torch.sigmoid(torch.tensor(2.0 / fitted[0])).item(), 3)
        0.75
    """
    check_rows_given(trajectory)
    outputs, labels = trajectory.outputs.double(), trajectory.labels
    one_class = trajectory.meaning.comparable and trajectory.meaning.classes
    if labels is None or outputs.dim() != 3 or not one_class:
        raise ArgumentError(
            "trajectory",
            expected="classes (batch, steps, classes), with labels",
            got=f"outputs of shape {tuple(outputs.shape)}, task {trajectory.task!r}, "
            f"{'no labels' if labels is None else 'labels'}",
            remedy="Record a classifier with model.unroll(inputs, labels=labels).",
        )
    answer = outputs.gather(2, labels[:, None, None].expand(-1, outputs.shape[1], 1)).squeeze(2)

    def slope(beta: Tensor) -> Tensor:
        return ((F.softmax(outputs * beta[:, None], dim=-1) * outputs).sum(-1) - answer).mean(0)

    low, high = (torch.full((trajectory.num_steps,), end, dtype=torch.float64) for end in (-2.0, 2.0))
    low, high = low.to(outputs.device), high.to(outputs.device)
    for _ in range(60):
        middle = (low + high) / 2
        rising = slope(10**middle) > 0
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    return tuple((10 ** -((low + high) / 2)).tolist())
