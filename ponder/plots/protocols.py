"""What figures ask of the things that they draw.

Figures draw numbers and know no more of where these come from than the protocols here say: a `ponder.Trajectory` is a
`Run`, a `ponder.Curve` is `CurveLike`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from ponder.distributions import StepDistribution

__all__ = [
    "CurveLike",
    "DiagnosisLike",
    "FrontierLike",
    "OverthinkingLike",
    "PointLike",
    "ReliabilityLike",
    "Run",
]


class ReliabilityLike(Protocol):
    """Confidence against accuracy in bins; `ponder.analysis.reliability.Reliability` has it."""

    @property
    def confidence(self) -> Sequence[float]:
        """The mean confidence of each bin."""

    @property
    def accuracy(self) -> Sequence[float]:
        """The share of right predictions in each bin."""

    @property
    def count(self) -> Sequence[int]:
        """The number of predictions in each bin."""

    @property
    def ece(self) -> float:
        """The expected calibration error."""


class OverthinkingLike(Protocol):
    """What the right step would be worth; `ponder.analysis.overthinking.Overthinking` has it."""

    @property
    def right(self) -> Sequence[float]:
        """The share of rows that are right at each step."""

    @property
    def right_by(self) -> Sequence[float]:
        """The share of rows that are right at each step or at an earlier one."""

    @property
    def lost(self) -> float:
        """The share of rows that are right at some step, and wrong at the last."""


class Run(Protocol):
    """What figures ask of a full-depth run; `ponder.Trajectory` has it."""

    @property
    def num_steps(self) -> int:
        """The number of steps N."""

    @property
    def halting(self) -> StepDistribution:
        """The halting distribution of each row."""

    def __len__(self) -> int: ...

    def reliability(self, bins: int = 10) -> Sequence[ReliabilityLike]:
        """Confidence against accuracy at each step."""

    def overthinking(self) -> OverthinkingLike:
        """What the right step would be worth."""


class PointLike(Protocol):
    """What one policy gives; `ponder.Point` has it."""

    @property
    def threshold(self) -> float:
        """The value of the threshold."""

    @property
    def score(self) -> float:
        """The score of the predictions at the exits."""

    @property
    def mean_exit_step(self) -> float:
        """The mean exit step, from 1 to N."""

    @property
    def cost(self) -> float:
        """The cost relative to full depth."""


@runtime_checkable
class CurveLike(Protocol):
    """What every value of a threshold gives; `ponder.Curve` has it."""

    @property
    def threshold(self) -> str:
        """The name of the threshold."""

    @property
    def metric(self) -> str:
        """The name of the score."""

    @property
    def points(self) -> Sequence[PointLike]:
        """One point for each value, in the order of the grid."""

    @property
    def full_depth(self) -> PointLike:
        """The point of a model that never exits early."""


class FrontierLike(Protocol):
    """The best score at every mean exit step; `ponder.analysis.frontiers.Frontier` has it."""

    @property
    def steps(self) -> Sequence[float]:
        """The mean exit steps of the points on the frontier."""

    @property
    def scores(self) -> Sequence[float]:
        """The score at each of them."""


class DiagnosisLike(Protocol):
    """Whether exits pay; `ponder.analysis.diagnosis.Diagnosis` has it."""

    @property
    def frontiers(self) -> Mapping[str, FrontierLike]:
        """A frontier for each policy by its name, and for ``"blind"``, ``"oracle"`` and ``"static"``."""

    @property
    def scores(self) -> Sequence[float]:
        """The score of each step, if all rows exit there."""

    @property
    def metric(self) -> str:
        """The name of the score."""
