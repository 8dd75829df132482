"""The numbers behind the figures, without any drawing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder.errors import ArgumentError
from ponder.parts.recording import Recording

__all__ = ["Overthinking", "Reliability", "confidences", "exit_shares", "interpolate", "overthinking_of"]


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, in bins of equal width.

    Args:
        confidence: Mean confidence of each bin; NaN where it is empty.
        accuracy: Share of right answers of each bin; NaN where it is empty.
        count: Answers in each bin.
    """

    confidence: list[float]
    accuracy: list[float]
    count: list[int]

    @classmethod
    def of(cls, confidence: Tensor, right: Tensor, bins: int) -> Reliability:
        """From confidences in [0, 1] and whether each answer was right, both `(answers,)`.

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
        """Expected calibration error Σ_m |B_m|/n · |acc(B_m) − conf(B_m)| (Guo et al. 2017, Eq. 3)."""
        bins = zip(self.count, self.accuracy, self.confidence, strict=True)
        return math.fsum(n * abs(right - sure) for n, right, sure in bins if n) / sum(self.count)


def confidences(trajectory: Recording) -> tuple[Tensor, Tensor]:
    """Probability that the head gives to its answer, and whether the answer is right, both `(answers, steps)`.

    An answer is a row; with several labels, a label of a row; with tokens, a token that has a label.

    Raises:
        ArgumentError: Answers that are not classes, or no labels.
    """
    labels = _labels(trajectory)
    outputs = at_least_float32(trajectory.outputs.detach())
    if bool(outputs.isnan().any()):
        raise ArgumentError(
            "trajectories", expected="outputs that are numbers", got="NaN", remedy="Look for its source."
        )
    return trajectory.meaning.confidences(outputs, labels)


@dataclass(frozen=True)
class Overthinking:
    """What the right step would be worth; shares of the rows.

    Args:
        right: Right at step n, `(steps,)`.
        right_by: Right at step n or before, `(steps,)`; at the last, what the best exit of every row would give.
        lost: Right at some step, and wrong at the last.
    """

    right: list[float]
    right_by: list[float]
    lost: float


def overthinking_of(trajectory: Recording) -> Overthinking:
    """What overthinking costs on a trajectory (Kaya et al. 2019, Section 3, the "destructive" effect).

    Example:
        >>> outputs = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [0.0, 3.0]]])  # rows, steps, classes
        >>> overthinking_of(Trajectory(outputs, None, torch.arange(2), labels=torch.tensor([0, 1])))
        Overthinking(right=[1.0, 0.5], right_by=[1.0, 1.0], lost=0.5)
    """
    right = trajectory.meaning.correct(trajectory.outputs, _labels(trajectory))
    right_by = right.cummax(1).values
    lost = (right_by[:, -1] & ~right[:, -1]).double().mean().item()
    return Overthinking(right.double().mean(0).tolist(), right_by.double().mean(0).tolist(), lost)


def exit_shares(exit_steps: Tensor, num_steps: int) -> list[float]:
    """Share of the rows that exit at each step, from exit steps `(batch,)`."""
    return (torch.bincount(exit_steps - 1, minlength=num_steps) / len(exit_steps)).tolist()


def interpolate(costs: Sequence[float], scores: Sequence[float], at: Sequence[float]) -> list[float]:
    """Scores at given costs, on straight lines between neighbours; equal costs count as one, with their mean score.

    For a score that is a mean over rows, a straight line is no guess: it is what one expects where a coin decides which
    of the two policies a row meets.

    Args:
        costs: Costs of the policies, in any order.
        scores: Their scores.
        at: Costs from the least to the greatest of `costs`.
    """
    together: dict[float, list[float]] = defaultdict(list)
    for cost, score in zip(costs, scores, strict=True):
        together[cost].append(score)
    known = sorted((cost, math.fsum(group) / len(group)) for cost, group in together.items())
    found = []
    for cost in at:
        after = next(place for place, (other, _) in enumerate(known) if other >= cost)
        (right, high), (left, low) = known[after], known[max(after - 1, 0)]
        share = 1.0 if right == left else (cost - left) / (right - left)
        found.append(low + share * (high - low))
    return found


def _labels(trajectory: Recording) -> Tensor:
    if trajectory.labels is None or not trajectory.meaning.comparable:
        raise ArgumentError(
            "trajectories",
            expected="answers that are right or wrong (classes), with labels",
            got=f"the task {trajectory.task!r}, {'no labels' if trajectory.labels is None else 'with labels'}",
            remedy="Record a classifier with model.unroll(inputs, labels=labels).",
        )
    return trajectory.labels
