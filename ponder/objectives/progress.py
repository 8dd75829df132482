"""How far training has come, for objectives that change while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from ponder._utils.validation import check_int
from ponder.errors import PonderError

__all__ = ["Progress"]


@dataclass(frozen=True)
class Progress:
    """The state of training that objectives may read: step `step` of `total`.

    `ponder.integrations.transformers.PonderTrainer` keeps it up to date; in a loop of your own, write
    ``model.progress = ponder.Progress(step, total)`` before each step of the optimiser. It is never saved.

    Args:
        step: Steps of the optimiser that are done, from 0 to `total`.
        total: How many there will be, ≥ 1; None where nobody knows, and nothing reads the share.

    Example:
        >>> Progress(30, 120).share
        0.25
    """

    step: int
    total: int | None

    def __post_init__(self) -> None:
        if self.total is not None:
            check_int("total", self.total, remedy="Count the steps of the optimiser: Progress(step, total).")
        check_int("step", self.step, 0, self.total, remedy="Count from 0 in every stage: Progress(step, total).")

    @property
    def share(self) -> float:
        """The share that is done, in [0, 1].

        Raises:
            PonderError: Nobody knows how many steps there will be.
        """
        if self.total is None:
            raise PonderError(
                "the objective reads how much of the training is done, and nobody knows how many steps there will be. "
                "Train on a loader with a length; in a loop of your own, write "
                "model.progress = ponder.Progress(step, total)."
            )
        return self.step / self.total
