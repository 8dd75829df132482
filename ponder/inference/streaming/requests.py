"""A row on its way through the engine, and what its caller gets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from ponder.errors import ArgumentError
from ponder.inference.examples import Example
from ponder.policies import ExitPolicy

__all__ = ["DeadlineError", "Request", "StreamOutput", "seconds_of"]


class DeadlineError(TimeoutError):
    """The deadline of a row has passed before there was an answer: no other `TimeoutError`, of the model's own, say."""


@dataclass(frozen=True, eq=False)
class StreamOutput:
    """The answer to one example.

    Args:
        output: The head's output for the row, without a batch dimension, `(…)`.
        exit_step: The step of `output`, 1-based.
        timed_out: Whether the deadline passed first: in a stream it chose the step, and not the policy.

    Example:
        >>> with ponder.StreamEngine(model) as engine:
        ...     answer = engine.submit(inputs[0], policy=policies.FixedStep(2)).result()
        >>> answer.output.shape, answer.exit_step, answer.timed_out
        (torch.Size([3]), 2, False)
    """

    output: Tensor
    exit_step: int
    timed_out: bool = False


@dataclass(eq=False)
class Request:
    """An example that was accepted and has to be answered exactly once.

    Args:
        example: The example, of which the inputs and the context are dropped when it is answered.
        policy: Who decides; it has been checked against the model.
        row_id: Who the row is, for seeded sampling.
        submitted: When it was accepted, in seconds of the engine's clock.
        deadline: When it must be answered, on the same clock, or None.
        policy_context: What the policy may read of the row, by name, as a batch of one.
        future: Where the answer goes.
        resolved: Whether it has been answered.
    """

    example: Example
    policy: ExitPolicy
    row_id: int
    submitted: float
    deadline: float | None = None
    policy_context: Mapping[str, Tensor] = field(default_factory=dict)
    future: Future[StreamOutput] = field(default_factory=Future)
    resolved: bool = False

    def __post_init__(self) -> None:
        self.signature, self.length = self.example.signature, self.example.length


def seconds_of(deadline: float) -> float:
    """A deadline; one that is no number would never come, and keep all later ones from coming."""
    if isinstance(deadline, bool) or not isinstance(deadline, int | float) or math.isnan(deadline):
        raise ArgumentError(
            "deadline", expected="seconds from now, or None", got=repr(deadline), remedy="Pass deadline=0.5, say."
        )
    return deadline
