"""A row on its way through the engine, and what its caller gets."""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from ponder.inference.collating import Example

__all__ = ["StreamOutput", "Ticket"]


@dataclass(frozen=True, eq=False)
class StreamOutput:
    """The answer to one example.

    Args:
        output: The head's output for the row, without a batch dimension, `(…)`.
        exit_step: The step of `output`, 1-based.
        timed_out: Whether the deadline, not the policy, chose the step.
    """

    output: Tensor
    exit_step: int
    timed_out: bool = False


@dataclass(eq=False)
class Ticket:
    """An example that was accepted and has to be answered exactly once.

    Args:
        example: The example; None once the stem has read it.
        signature: Rows with the same signature may share a batch.
        length: Length of the row; 0 where the model declares none.
        row_id: Who the row is, for seeded sampling.
        submitted: When it was accepted, in seconds of the engine's clock.
        deadline: When it must be answered, on the same clock, or None.
        future: Where the answer goes.
        resolved: Whether it has been answered.
    """

    example: Example | None
    signature: Hashable
    length: int
    row_id: int
    submitted: float
    deadline: float | None = None
    future: Future[StreamOutput] = field(default_factory=Future)
    resolved: bool = False
