"""What puts the rows of many requests into common batches, as far as a service needs to know it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol

from ponder.inference.streaming import StreamOutput
from ponder.policies import ExitPolicy

__all__ = ["Batcher"]


class Batcher(Protocol):
    """`ponder.StreamEngine`, or a `WindowBatcher`.

    Example:
        >>> batcher = served.start(ponder.serving.Limits())  # a stream, as said above
        >>> batcher.submit(torch.randn(8), policy=policies.FixedStep(2)).result().exit_step
        2
        >>> batcher.close()
    """

    @property
    def failure(self) -> BaseException | None:
        """What ended the thread that answers, so that no row will be answered any more; None while it works."""

    def submit(
        self, example: Any, *, policy: ExitPolicy | None = None, deadline: float | None = None, block: bool = True
    ) -> Future[StreamOutput]:
        """Hand in one example; see `ponder.StreamEngine.submit`. Any thread may call it."""

    def close(self, *, cancel: bool = False) -> None:
        """Take no more rows, and return when the others are answered."""
