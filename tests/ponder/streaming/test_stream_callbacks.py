"""Errors or answers, never silence: what callbacks, heads, deadlines and forked processes do to an engine."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import policies
from ponder.errors import ArgumentError, PonderError
from ponder.inference.streaming import StreamEngine
from tests.ponder.checks import Explosion, refused
from tests.ponder.streaming.driving import Drive
from tests.ponder.streaming.test_stream_faults import PATIENCE, gated
from tests.toys import NUM_STEPS, WIDTH, make_toy, wrap


def adding(num_steps: int = 3) -> ponder.PonderWrapper:
    return ponder.PonderWrapper(lambda hidden: hidden + 1, num_steps, head=nn.Identity()).eval()


def test_a_callback_may_submit_although_the_queue_is_full() -> None:
    gate, engine = gated(max_batch=1, max_waiting=1)
    more: list[Future[Any]] = []
    first = engine.submit(torch.zeros(1))
    assert gate.reached.wait(PATIENCE)
    first.add_done_callback(lambda _: more.extend(engine.submit(torch.ones(1)) for _ in range(3)))
    second = engine.submit(torch.zeros(1))
    gate.opened.set()
    assert first.result(PATIENCE).output.tolist() == [3.0]
    assert second.result(PATIENCE).output.tolist() == [3.0]
    engine.close()
    assert [future.result(0).output.tolist() for future in more] == [[4.0]] * 3


def test_a_chain_of_callbacks() -> None:
    hops, ended = 0, threading.Event()
    engine = StreamEngine(adding(), max_batch=2, max_waiting=1)

    def again(done: Future[Any]) -> None:
        nonlocal hops
        hops += 1
        if hops < 200:
            engine.submit(done.result().output).add_done_callback(again)
        else:
            ended.set()

    engine.submit(torch.zeros(1)).add_done_callback(again)
    assert ended.wait(PATIENCE)
    engine.close()
    assert engine.stats.done == 200


@pytest.mark.parametrize("cancel", [False, True])
def test_a_callback_may_close_the_engine(cancel: bool) -> None:
    gate, engine = gated(max_batch=1)
    problems: list[BaseException] = []

    def close(_: Future[Any]) -> None:
        try:
            engine.close(cancel=cancel)
        except BaseException as error:
            problems.append(error)

    first = engine.submit(torch.zeros(1))
    first.add_done_callback(close)
    others = [engine.submit(torch.zeros(1)) for _ in range(3)]
    gate.opened.set()
    engine._worker.join(PATIENCE)
    assert not engine._worker.is_alive()
    assert problems == []
    assert first.result(0).output.tolist() == [3.0]
    assert all(future.cancelled() for future in others) if cancel else all(future.result(0) for future in others)
    with pytest.raises(PonderError, match="closed"):
        engine.submit(torch.zeros(1))


def test_a_run_inside_a_callback_is_refused() -> None:
    gate, engine = gated(max_batch=1)
    heard: list[BaseException] = []
    ended = threading.Event()

    def run(_: Future[Any]) -> None:
        try:
            list(engine.run([torch.zeros(1)]))
        except PonderError as error:
            heard.append(error)
        ended.set()

    engine.submit(torch.zeros(1)).add_done_callback(run)
    gate.opened.set()
    assert ended.wait(PATIENCE)
    engine.close()
    assert "done-callback" in str(heard[0])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_ends_the_thread_leaves_nobody_waiting() -> None:
    gate, engine = gated(max_batch=2)

    def leave(_: Future[Any]) -> None:
        raise SystemExit

    futures = [engine.submit(torch.zeros(1)) for _ in range(6)]
    for future in futures:
        future.add_done_callback(leave)
    gate.opened.set()
    engine._worker.join(PATIENCE)
    assert all(future.done() for future in futures)
    assert [isinstance(future.exception(0), SystemExit) for future in futures] == [False, *[True] * 5]


class Dropping(nn.Module):
    """A part that loses the rows below zero."""

    def forward(self, features: Tensor) -> Tensor:
        return features[features[:, 0] >= 0]


@pytest.mark.parametrize("part", ["head", "readout"])
def test_a_row_that_a_head_or_readout_loses_fails_alone(part: str) -> None:
    parts: dict[str, Any] = {"head": nn.Identity(), part: Dropping()}
    model = ponder.PonderWrapper(lambda hidden: hidden * 1.5, 3, **parts).eval()
    rows = torch.rand(40, 2) + 0.1
    rows[17] = -rows[17]
    with StreamEngine(model, max_batch=16) as engine:
        answers = dict(engine.run(rows, errors="return"))
    assert isinstance(answers.pop(17), ArgumentError)
    assert len(answers) == 39
    for row, answer in answers.items():
        torch.testing.assert_close(answer.output, rows[row] * 1.5**3)


@pytest.mark.parametrize("deadline", [float("nan"), "soon", True])
def test_a_deadline_that_is_no_number_is_refused(deadline: Any) -> None:
    with StreamEngine(adding()) as engine:
        with refused("deadline", repr(deadline)):
            engine.submit(torch.zeros(1), deadline=deadline)
        assert engine.submit(torch.zeros(1), deadline=float("inf")).result(PATIENCE).exit_step == 3
        with pytest.raises(TimeoutError):
            engine.submit(torch.zeros(1), deadline=-1.0).result(PATIENCE)
        with pytest.raises(TypeError):
            engine.submit(torch.zeros(1), row_id=0.5)


def in_a_fork(child: Any) -> str:
    """What `child` gives in a forked process."""
    reads, writes = os.pipe()
    process = os.fork()
    if not process:
        try:
            told = child()
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writes, told.encode())
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        told = pipe.read()
    os.waitpid(process, 0)
    return told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork processes")
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_an_engine_used_after_a_fork_says_so() -> None:
    gate, engine = gated(max_batch=1, max_waiting=1)
    engine.submit(torch.zeros(1))
    assert gate.reached.wait(PATIENCE)
    running = engine.run([torch.zeros(1)])
    told = in_a_fork(lambda: str(engine.submit(torch.zeros(1)).result(PATIENCE)))
    assert told.startswith("PonderError: the engine runs in the process that built it")
    told = in_a_fork(lambda: str(next(running)))
    assert told.startswith("PonderError: the engine runs in the process that built it")
    assert in_a_fork(lambda: str(engine.close())) == "None"
    gate.opened.set()
    engine.close()
    assert engine.stats.done == 1


def test_a_callback_that_raises_is_its_own_problem(caplog: pytest.LogCaptureFixture) -> None:
    def explode(_: Future[Any]) -> None:
        raise Explosion

    gate, engine = gated(max_batch=2)
    futures = [engine.submit(torch.zeros(1)) for _ in range(5)]
    for future in futures:
        future.add_done_callback(explode)
    gate.opened.set()
    engine.close()
    assert [future.result(0).exit_step for future in futures] == [3] * 5
    assert "exception calling callback" in caplog.text


def test_counts_of_many_threads_are_whole() -> None:
    with StreamEngine(adding()) as engine:
        threads = [threading.Thread(target=lambda: [engine.submit("no row") for _ in range(500)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert engine.stats.failed == 4_000


def test_lists_and_labels_are_read_as_in_a_data_set() -> None:
    drive = Drive(wrap(make_toy("shared"), policy=policies.LastStep()).eval())
    row = torch.randn(WIDTH)
    drive.add(row)
    drive.add(row.tolist())
    drive.add((row.tolist(), {"labels": 3}))
    drive.turns()
    first, *others = (request.future.result(0) for request in drive.requests)
    assert all(torch.equal(other.output, first.output) and other.exit_step == NUM_STEPS for other in others)
