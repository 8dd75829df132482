"""Overthinking: predictions that were right at some step and are wrong at the last (Kaya et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from ponder.parts.recording import Recording, check_evaluated, check_has_rows

__all__ = ["Overthinking", "overthinking_of"]


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

    Raises:
        ArgumentError: Predictions that are not right or wrong, no labels, no rows, or a run of training mode.

    Example:
        >>> outputs = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [0.0, 3.0]]])  # rows, steps, classes
        >>> overthinking_of(Trajectory(outputs, None, torch.arange(2), labels=torch.tensor([0, 1])))
        Overthinking(right=[1.0, 0.5], right_by=[1.0, 1.0], lost=0.5)
    """
    check_has_rows(trajectory)
    check_evaluated(trajectory)
    right = trajectory.correct()
    right_by = right.cummax(1).values
    lost = (right_by[:, -1] & ~right[:, -1]).double().mean().item()
    return Overthinking(right.double().mean(0).tolist(), right_by.double().mean(0).tolist(), lost)
