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
        """Mean confidence of each bin."""

    @property
    def accuracy(self) -> Sequence[float]:
        """Share of right predictions of each bin."""

    @property
    def count(self) -> Sequence[int]:
        """Predictions in each bin."""

    @property
    def ece(self) -> float:
        """Expected calibration error."""


class OverthinkingLike(Protocol):
    """What the right step would be worth; `ponder.analysis.overthinking.Overthinking` has it."""

    @property
    def right(self) -> Sequence[float]:
        """Share of rows right at each step."""

    @property
    def right_by(self) -> Sequence[float]:
        """Share of rows right at each step or before."""

    @property
    def lost(self) -> float:
        """Share of rows right at some step, and wrong at the last."""


class Run(Protocol):
    """What figures ask of a full-depth run; `ponder.Trajectory` has it."""

    @property
    def num_steps(self) -> int:
        """N."""

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
        """Its value."""

    @property
    def score(self) -> float:
        """Of the predictions at the exits."""

    @property
    def mean_exit_step(self) -> float:
        """From 1 to N."""

    @property
    def cost(self) -> float:
        """Relative to full depth."""


@runtime_checkable
class CurveLike(Protocol):
    """What every value of a threshold gives; `ponder.Curve` has it."""

    @property
    def threshold(self) -> str:
        """Its name."""

    @property
    def metric(self) -> str:
        """Name of the score."""

    @property
    def points(self) -> Sequence[PointLike]:
        """In the order of the grid."""

    @property
    def full_depth(self) -> PointLike:
        """What no exit gives."""


class FrontierLike(Protocol):
    """The best score at every mean exit step; `ponder.analysis.frontiers.Frontier` has it."""

    @property
    def steps(self) -> Sequence[float]:
        """Mean exit steps."""

    @property
    def scores(self) -> Sequence[float]:
        """The score at each."""


class DiagnosisLike(Protocol):
    """Whether exits pay; `ponder.analysis.diagnosis.Diagnosis` has it."""

    @property
    def frontiers(self) -> Mapping[str, FrontierLike]:
        """By name of the policy, and ``"blind"``, ``"oracle"`` and ``"static"``."""

    @property
    def scores(self) -> Sequence[float]:
        """Of each step."""

    @property
    def metric(self) -> str:
        """Name of the score."""
