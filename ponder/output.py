"""What a call of a wrapped model gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ponder.trajectory import Trajectory

__all__ = ["PonderOutput"]


@dataclass(frozen=True, eq=False)
class PonderOutput:
    """What a call of the model gives.

    Args:
        outputs: In training the outputs of the last step, else of each row's exit, `(batch, …)`.
        exit_step: The step of `outputs`, `(batch,)` long, 1-based.
        loss: Scalar, where labels were given: in training the objective's, else the task's at the exits.
        trajectory: Every step, in training; None otherwise.
    """

    outputs: Tensor
    exit_step: Tensor
    loss: Tensor | None = None
    trajectory: Trajectory | None = None
