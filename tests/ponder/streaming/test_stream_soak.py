"""Many rows from many threads: lengths, failures, cancellations and deadlines, and each answered exactly once."""

from __future__ import annotations

import gc
import random
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import readouts
from ponder.inference.streaming import StreamEngine
from ponder.inference.streaming.ticket import Ticket
from ponder.parts.padding import Padding
from ponder.policies import ExitPolicy, PolicyBatch, StepView
from tests.ponder.checks import Explosion

THREADS, PATIENCE = 8, 60


class Walk(nn.Module):
    """A step that fails for rows that have become negative."""

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        if bool((hidden < 0).any()):
            raise Explosion
        return hidden + attention_mask[..., None]


class ById(ExitPolicy):
    """A row leaves at the step that its id says."""

    def init(self, batch: PolicyBatch) -> Any:
        return batch.row_ids % 6 + 1

    def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
        return step.index >= state, state


@dataclass
class Caller:
    """What one thread hands in, and what it hears."""

    engine: StreamEngine
    number: int
    rows: int
    futures: list[tuple[str, int, Future[Any]]] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)

    def run(self) -> None:
        rng = random.Random(self.number)
        for row in range(self.rows):
            row_id, length = self.number * self.rows + row, rng.randrange(1, 9)
            kind = rng.choices(["good", "bad", "shape", "late", "cancel"], [80, 1, 1, 9, 9])[0]
            example = torch.full((length, 2), -1.0 if kind == "bad" else 0.0)
            future = self.engine.submit(
                torch.tensor(0.0) if kind == "shape" else example,
                row_id=row_id,
                deadline=rng.choice([0.0, 1e-4, 1e-3]) if kind == "late" else None,
            )
            self.calls.append(0)
            future.add_done_callback(lambda _, place=row: self.heard(place))
            self.futures.append((kind, row_id, future))
            if kind == "cancel":
                self.futures[rng.randrange(max(0, row - 3), row + 1)][2].cancel()

    def heard(self, place: int) -> None:
        self.calls[place] += 1


def soak(rows: int) -> None:
    model = ponder.PonderWrapper(
        Walk(), 6, head=nn.Identity(), readout=readouts.first_token, policy=ById(), padding=Padding()
    ).eval()
    with StreamEngine(model, max_batch=64, max_waiting=128) as engine:
        callers = [Caller(engine, number, rows // THREADS) for number in range(THREADS)]
        threads = [threading.Thread(target=caller.run) for caller in callers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    ends = {"done": 0, "failed": 0, "timed_out": 0, "cancelled": 0}
    for caller in callers:
        assert caller.calls == [1] * len(caller.futures), "every future is resolved exactly once"
        for kind, row_id, future in caller.futures:
            ends[end_of(kind, row_id, future)] += 1
    stats = engine.stats
    assert sum(ends.values()) == rows
    assert ends == {end: getattr(stats, end) for end in ends}
    assert (stats.waiting, stats.running) == (0, 0)
    assert min(ends.values()) > 0


def end_of(kind: str, row_id: int, future: Future[Any]) -> str:
    """How a row ended, after a look at whether it may have."""
    assert future.done()
    if future.cancelled():
        return "cancelled"
    error = future.exception()
    if isinstance(error, TimeoutError):
        assert kind == "late"
        return "timed_out"
    if error is not None:
        assert kind in ("bad", "shape"), error
        return "failed"
    answer = future.result()
    assert kind not in ("bad", "shape")
    assert answer.output.tolist() == [float(answer.exit_step)] * 2
    assert answer.exit_step == row_id % 6 + 1 or (answer.timed_out and answer.exit_step <= row_id % 6)
    return "timed_out" if answer.timed_out else "done"


def test_every_row_is_answered_exactly_once() -> None:
    soak(2_000)


@pytest.mark.slow
def test_every_one_of_many_rows_is_answered_exactly_once() -> None:
    soak(20_000)


def test_nothing_is_kept_of_rows_that_are_answered() -> None:
    model = ponder.PonderWrapper(nn.Linear(4, 4), 3, head=nn.Identity()).eval()
    with StreamEngine(model, max_batch=16, max_waiting=16) as engine:
        engine.submit(torch.zeros(4), deadline=1e9).result(PATIENCE)
        before = alive()
        for _ in range(3):
            for future in [engine.submit(torch.zeros(4), deadline=1e9) for _ in range(300)]:
                future.result(PATIENCE)
            for _ in engine.run(torch.zeros(4) for _ in range(300)):
                pass
        del future
    assert alive() - before <= 3 * (64 + 2), "of a few, the deadline is still on the list"


def alive() -> int:
    """Tickets, futures and tensors in memory."""
    gc.collect()
    return sum(type(thing) in (Ticket, Future, Tensor) for thing in gc.get_objects())
