"""How far training has come, for objectives that change while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from ponder._utils.validation import check_int

__all__ = ["Progress"]


@dataclass(frozen=True)
class Progress:
    """The state of training that objectives may read: step `step` of `total`.

    `ponder.integrations.transformers.PonderTrainer` keeps it up to date; in a loop of your own, write
    ``model.progress = ponder.Progress(step, total)`` before each step of the optimiser. It is never saved.

    Args:
        step: Steps of the optimiser that are done, from 0 to `total`.
        total: How many there will be, ≥ 1.

    Example:
        >>> Progress(30, 120).share
        0.25
    """

    step: int
    total: int

    def __post_init__(self) -> None:
        check_int("total", self.total, remedy="Count the steps of the optimiser: Progress(step, total).")
        check_int("step", self.step, 0, self.total, remedy="Count from 0 in every stage: Progress(step, total).")

    @property
    def share(self) -> float:
        """The share that is done, in [0, 1]."""
        return self.step / self.total
