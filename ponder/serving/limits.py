"""What a service accepts, and for how long a request may take."""

from __future__ import annotations

from dataclasses import dataclass

from ponder._utils.validation import check_int, check_real, check_type
from ponder.errors import ArgumentError

__all__ = ["Limits"]

_SPARE = 64  # places of a batcher for what the service does besides: audits


@dataclass(frozen=True)
class Limits:
    """Bounds of a service.

    Args:
        max_body: Bytes of a request's body; more is answered by 413.
        max_texts: Texts of a request; more is answered by 422.
        max_waiting: Texts that were accepted and are not answered; a request that would exceed it gets 429.
        deadline: Seconds from a request's arrival after which it is answered as it stands; a request may ask for
            fewer. None for no limit.
        max_batch: Texts of a batch.
        window: Seconds that an idle model waits for a batch to fill, where rows are batched by a window.

    Raises:
        ArgumentError: A bound out of range, or more texts in a request than may wait.

    Example:
        >>> Limits(max_texts=8, deadline=0.5).max_waiting
        1024
    """

    max_body: int = 1 << 20
    max_texts: int = 64
    max_waiting: int = 1024
    deadline: float | None = 30.0
    max_batch: int = 32
    window: float = 0.002

    def __post_init__(self) -> None:
        for name in ("max_body", "max_texts", "max_waiting", "max_batch"):
            check_int(name, getattr(self, name))
        if self.deadline is not None:
            check_real("deadline", self.deadline, open_low=True, remedy="Pass deadline=30.0, say, or None.")
        check_real("window", self.window)
        if self.max_texts > self.max_waiting:
            raise ArgumentError(
                "max_texts",
                expected=f"at most max_waiting, {self.max_waiting}",
                got=self.max_texts,
                remedy="A request of more texts than may wait could never be accepted.",
            )

    @classmethod
    def checked(cls, limits: Limits | None) -> Limits:
        """The limits that a caller gives; those of a service that names none where None.

        Raises:
            ArgumentTypeError: They are none.
        """
        made = cls() if limits is None else limits
        check_type("limits", made, cls, remedy="Pass ponder.serving.Limits(max_waiting=256), say, or None.")
        return made

    @property
    def places(self) -> int:
        """How many rows may wait in the batcher: the texts that were accepted, and what audits add."""
        return self.max_waiting + _SPARE
