"""A scheduler without its thread, on a clock that the test sets, and helpers to make and compare rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import ponder
from ponder.inference.batching import BatchLimits
from ponder.inference.streaming.request_queue import RequestQueue
from ponder.inference.streaming.requests import Request
from ponder.inference.streaming.scheduler import Scheduler
from ponder.inference.streaming.stats import StreamMetrics
from ponder.inference.streaming.stepper import Stepper
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
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waiting, self.metrics = RequestQueue(10_000), StreamMetrics()
        limits = BatchLimits(self.max_batch, self.max_tokens)
        self.stepper = Stepper(self.model, None)
        self.scheduler = Scheduler(self.stepper, self.waiting, limits, self.max_skips, self.metrics, lambda: self.now)

    def add(
        self,
        example: Any,
        row_id: int | None = None,
        deadline: float | None = None,
        policy: ExitPolicy | None = None,
        policy_context: dict[str, Tensor] | None = None,
    ) -> Request:
        row_id = len(self.requests) if row_id is None else row_id
        policy = next(each for each in (policy, self.policy, self.model.policy) if each is not None)
        given = {name: value[None] for name, value in (policy_context or {}).items()}
        request = Request(self.stepper.reader.read(example), policy, row_id, self.now, deadline, given)
        request.future.add_done_callback(lambda done: self.scheduler.cancel(request) if done.cancelled() else None)
        self.waiting.put(request, False, None)
        if deadline is not None:
            self.scheduler.expect(request)
        self.requests.append(request)
        return request

    def turns(self, count: int = 10_000) -> None:
        for _ in range(count):
            if not self.scheduler.turn():
                return

    def step_of(self, request: Request) -> int:
        return request.future.result(0).exit_step


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
