"""Whether answers are those of a reference, whose predictions stand in the trajectory as labels."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ponder.calibration.risks import RecordedRisk, losses_by_step
from ponder.errors import ArgumentError
from ponder.parts.recording import Recording
from ponder.parts.tasks import Task

__all__ = ["ReferenceRisk", "differences", "full_depth", "reference_labels"]

_REMEDY = (
    "Pass dataclasses.replace(trajectory, labels=reference_labels(task, outputs of the reference)), "
    "from ponder.calibration.reference."
)


@dataclass(frozen=True)
class ReferenceRisk(RecordedRisk):
    """Whether the answer of each step is another than the label, which is what the reference predicts."""

    name: str = field(default="disagreement_with_reference", init=False)

    def by_step(self, trajectory: Recording) -> Tensor:
        """1 where the answer is another, or where there is none, `(batch, steps)` float64.

        Raises:
            ArgumentError: No labels, or answers that are not the same or another.
        """
        if trajectory.labels is None or not trajectory.meaning.comparable:
            raise ArgumentError(
                "trajectory",
                expected="answers that are the same or not, with those of the reference as labels",
                got=f"the task {trajectory.task!r}, {'no labels' if trajectory.labels is None else 'with labels'}",
                remedy=_REMEDY,
            )
        task, mask, labels = trajectory.meaning, trajectory.mask, trajectory.labels
        own = full_depth(trajectory)
        if labels.shape != own.shape:
            raise ArgumentError(
                "trajectory",
                expected=f"what the reference predicts as labels, of shape {tuple(own.shape)}",
                got=f"shape {tuple(labels.shape)}",
                remedy=_REMEDY,
            )
        each = []
        for outputs in trajectory.outputs.unbind(1):
            same = task.same(task.predictions(task.without_padding(outputs, mask)), labels, mask=mask)
            each.append(~(same & task.answered(outputs, mask)))  # NaN is no answer, so it is that of no reference
        return torch.stack(each, 1).double()


def differences(trajectory: Recording, own: bool = False) -> Tensor:
    """Whether each row's answer at each step is another than its label, `(batch, steps)` bool.

    Args:
        trajectory: A full-depth run.
        own: Whether the reference is the run's own full depth; labels are then not read.

    Raises:
        ArgumentError: The trajectory has no labels where they are read.
    """
    return losses_by_step("disagreement" if own else ReferenceRisk(), trajectory) > 0


def full_depth(trajectory: Recording) -> Tensor:
    """What the run itself answers at full depth, as labels of such a risk, `(batch, …)`."""
    return reference_labels(trajectory.meaning, trajectory.outputs[:, -1], trajectory.mask)


def reference_labels(task: Task, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
    """What a reference answers, as labels of such a risk, `(batch, …)`; −1, which no answer is, for rows with NaN.

    Args:
        task: What the outputs are about.
        outputs: Outputs of the reference, `(batch, …)`.
        mask: Which positions count, `(batch, length)` bool; None for all.
    """
    found = task.predictions(task.without_padding(outputs, mask))
    answered = task.answered(outputs, mask)
    if found.is_floating_point() or bool(answered.all()):  # numbers, in which NaN stays NaN
        return found
    return torch.where(answered.reshape(-1, *[1] * (found.dim() - 1)), found.long(), -1)
