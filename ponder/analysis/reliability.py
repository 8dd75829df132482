"""Reliability: how often predictions are right, against how probable the head holds them (Guo et al. 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder._utils.validation import check_int
from ponder.errors import ArgumentError
from ponder.parts.recording import Recording, check_evaluated, check_has_rows

__all__ = ["Reliability", "confidences", "reliability_of"]


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, in bins of equal width.

    Args:
        confidence: Mean confidence of each bin; NaN where it is empty.
        accuracy: Share of right predictions of each bin; NaN where it is empty.
        count: Predictions in each bin.
    """

    confidence: list[float]
    accuracy: list[float]
    count: list[int]

    @classmethod
    def of(cls, confidence: Tensor, right: Tensor, bins: int) -> Reliability:
        """Count confidences in [0, 1], and whether each prediction was right, both `(predictions,)`, into bins.

        Bin m of M holds the confidences in ((m − 1)/M, m/M], and the first holds 0 too.
        """
        confidence, right = confidence.cpu(), right.cpu()
        place = ((confidence.double() * bins).ceil().long() - 1).clamp(0, bins - 1)
        count = torch.bincount(place, minlength=bins)
        confident = torch.bincount(place, weights=confidence.double(), minlength=bins) / count  # 0/0 is NaN
        accurate = torch.bincount(place, weights=right.double(), minlength=bins) / count
        return cls(confident.tolist(), accurate.tolist(), count.tolist())

    @property
    def ece(self) -> float:
        """Expected calibration error Σ_m |B_m|/n · |acc(B_m) − conf(B_m)| (Guo et al. 2017, Eq. 3); NaN of nothing."""
        bins = zip(self.count, self.accuracy, self.confidence, strict=True)
        if not sum(self.count):
            return math.nan
        return math.fsum(n * abs(right - sure) for n, right, sure in bins if n) / sum(self.count)


def confidences(trajectory: Recording) -> tuple[Tensor, Tensor]:
    """How probable the head holds each prediction, and whether it is right, both `(predictions, steps)`.

    A prediction is a row; with several labels, a label of a row; with tokens, a token that has a label and is no
    padding.

    Raises:
        ArgumentError: Predictions that are not classes, no labels, no rows, a run of training mode, or outputs that are
            NaN or +inf.
    """
    check_has_rows(trajectory)
    check_evaluated(trajectory, "trajectories")
    labels = trajectory.counted_labels()
    sure, right = trajectory.meaning.confidences(at_least_float32(trajectory.read_outputs().detach()), labels)
    if not bool(trajectory.answered().all()) or not bool(sure.isfinite().all()):
        raise ArgumentError(
            "trajectories",
            expected="outputs that are numbers",
            got="NaN, or infinite confidence in a class",
            remedy="Look for its source.",
        )
    return sure, right


def reliability_of(trajectory: Recording, bins: int = 10) -> list[Reliability]:
    """The reliability of every step; see `confidences` for what is refused.

    Args:
        trajectory: A full-depth run of a classifier, with labels.
        bins: Number of bins over [0, 1].
    """
    check_int("bins", bins, remedy="Pass bins=10.")
    sure, right = confidences(trajectory)
    return [Reliability.of(*each, bins) for each in zip(sure.unbind(1), right.unbind(1), strict=True)]
