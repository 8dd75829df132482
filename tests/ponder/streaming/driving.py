"""A scheduler without its thread, on a clock that the test sets, and helpers to make and compare rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import ponder
from ponder.inference.collating import read_example
from ponder.inference.streaming.inbox import Inbox
from ponder.inference.streaming.rooms import Limits
from ponder.inference.streaming.scheduler import Scheduler
from ponder.inference.streaming.stats import Meter
from ponder.inference.streaming.stepper import Stepper
from ponder.inference.streaming.ticket import Ticket
from ponder.policies import ExitPolicy


@dataclass
class Drive:
    """Rows through a scheduler, turn by turn.

    Args:
        model: The model.
        policy: The model's own where None.
        max_batch: Rows of a step.
    """

    model: ponder.PonderWrapper
    policy: ExitPolicy | None = None
    max_batch: int = 4
    max_tokens: int | None = None
    max_skips: int = 20
    now: float = 0.0
    tickets: list[Ticket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inbox, self.meter = Inbox(10_000), Meter()
        limits = Limits(self.max_batch, self.max_tokens, self.max_skips)
        policy = self.model.policy if self.policy is None else self.policy
        stepper = Stepper(self.model, policy, None)
        self.scheduler = Scheduler(stepper, self.inbox, limits, self.meter, lambda: self.now)

    def add(self, example: Any, row_id: int | None = None, deadline: float | None = None) -> Ticket:
        read = read_example(example, self.model.padding)
        row_id = len(self.tickets) if row_id is None else row_id
        ticket = Ticket(read, read.signature, read.length, row_id, self.now, deadline)
        ticket.future.add_done_callback(lambda done: self.scheduler.cancel(ticket) if done.cancelled() else None)
        self.inbox.put(ticket, False, None)
        self.scheduler.expect(ticket)
        self.tickets.append(ticket)
        return ticket

    def turns(self, count: int = 10_000) -> None:
        for _ in range(count):
            if not self.scheduler.turn():
                return

    def step_of(self, ticket: Ticket) -> int:
        return ticket.future.result(0).exit_step


def examples_of(inputs: Any, context: dict[str, Any]) -> list[Any]:
    """The rows of a batch as examples."""
    size = next(tensor for tensor in _leaves(inputs)).shape[0]
    return [(_row(inputs, row), _row(context, row)) for row in range(size)]


def assert_same(answers: Sequence[Any], out: ponder.PonderOutput) -> None:
    """Answers, in the order of the batch, are what the model gave for it."""
    assert [answer.exit_step for answer in answers] == out.exit_step.tolist()
    for answer, expected in zip(answers, out.outputs, strict=True):
        assert not answer.timed_out
        torch.testing.assert_close(answer.output, expected, atol=1e-5, rtol=1e-4)


def _row(tree: Any, row: int) -> Any:
    if isinstance(tree, Tensor):
        return tree[row]
    if isinstance(tree, dict):
        return {key: _row(value, row) for key, value in tree.items()}
    return type(tree)(_row(value, row) for value in tree) if isinstance(tree, list | tuple) else tree


def _leaves(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [leaf for child in children for leaf in _leaves(child)]
