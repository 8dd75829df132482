"""Many rows from many threads: lengths, failures, cancellations and deadlines, and each answered exactly once."""

from __future__ import annotations

import gc
import logging
import os
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
from ponder.inference.streaming.requests import Request
from ponder.parts.padding import Padding
from ponder.policies import ExitPolicy, PolicyBatch, StepView
from tests.ponder.checks import Explosion

THREADS, PATIENCE = 8, 300
LONG = "PONDER_LONG" in os.environ


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
    lock: Any = field(default_factory=threading.Lock)

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


@dataclass
class Callback:
    """A done-callback that may hand in another row, cancel one, or raise.

    Args:
        caller: Whose row was answered.
        seed: What it does.
    """

    caller: Caller
    seed: int

    def __call__(self, future: Future[Any]) -> None:
        rng = random.Random(self.seed)
        kind = rng.choices(["nothing", "submit", "cancel", "raise"], [60, 20, 15, 5])[0]
        if kind == "submit":
            self.caller.hand_in_again(rng)
        elif kind == "cancel":
            self.caller.futures[rng.randrange(len(self.caller.futures))][2].cancel()
        elif kind == "raise":
            raise Explosion


class BusyCaller(Caller):
    """A caller whose callbacks go on handing in rows, in the engine's own thread, and whose rows have policies.

    Its list of futures is appended to by its own thread and by the engine's.
    """

    def run(self) -> None:
        super().run()
        for row, (_, _, future) in enumerate(list(self.futures)):
            future.add_done_callback(Callback(self, self.number * self.rows + row))

    def hand_in_again(self, rng: random.Random) -> None:
        row_id, length = rng.randrange(1_000_000), rng.randrange(1, 9)
        future = self.engine.submit(  # raises once the engine is closed
            torch.full((length, 2), rng.choice([0.0] * 9 + [-1.0])),
            row_id=row_id,
            policy=rng.choice([None, Late(row_id % 6 + 1)]),
        )
        with self.lock:
            place = len(self.calls)
            self.calls.append(0)
            self.futures.append(("any", row_id, future))
        future.add_done_callback(lambda _: self.heard(place))


@dataclass(frozen=True)
class Late(ExitPolicy):
    """A row leaves at this step."""

    step: int

    def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
        return step.index >= self.step, state


def soak(rows: int, threads: int = THREADS, of: type[Caller] = Caller) -> int:
    """Stream so many rows from so many threads; return how many were answered, those of callbacks included."""
    model = ponder.PonderWrapper(
        Walk(), 6, head=nn.Identity(), readout=readouts.first_token, policy=ById(), padding=Padding()
    ).eval()
    with StreamEngine(model, max_batch=64, max_waiting=128) as engine:
        callers = [of(engine, number, rows // threads) for number in range(threads)]
        workers = [threading.Thread(target=caller.run) for caller in callers]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE)
            assert not worker.is_alive(), "stuck"
    ends = {"done": 0, "failed": 0, "timed_out": 0, "cancelled": 0}
    for caller in callers:
        assert caller.calls == [1] * len(caller.futures), "every future is resolved exactly once"
        for kind, row_id, future in caller.futures:
            ends[end_of(kind, row_id, future)] += 1
    stats = engine.stats
    answered = sum(ends.values())
    assert answered == sum(len(caller.futures) for caller in callers)
    assert answered == rows if of is Caller else answered > rows
    assert ends == {end: getattr(stats, end) for end in ends}
    assert (stats.waiting, stats.running) == (0, 0)
    assert min(ends.values()) > 0
    return answered


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
        assert kind in ("bad", "shape", "any"), error
        return "failed"
    answer = future.result()
    assert kind not in ("bad", "shape")
    assert answer.output.tolist() == [float(answer.exit_step)] * 2
    assert answer.exit_step == row_id % 6 + 1 or (answer.timed_out and answer.exit_step <= row_id % 6)
    return "timed_out" if answer.timed_out else "done"


@pytest.mark.slow
def test_every_one_of_many_rows_is_answered_exactly_once() -> None:
    soak(20_000 if LONG else 5_000)


def test_rows_of_threads_and_of_callbacks_are_answered_exactly_once(caplog: pytest.LogCaptureFixture) -> None:
    """Callbacks hand in rows, cancel and raise; 4,000 rows (PONDER_LONG: 50,000) of 16 threads, 0 lost, 0 stuck."""
    caplog.set_level(logging.CRITICAL, logger="concurrent.futures")
    rows = 50_000 if LONG else 4_000
    assert soak(rows, threads=16, of=BusyCaller) > rows


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
    """Requests, futures and tensors in memory."""
    gc.collect()
    return sum(type(thing) in (Request, Future, Tensor) for thing in gc.get_objects())
