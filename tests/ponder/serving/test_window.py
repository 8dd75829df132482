"""`WindowBatcher`: what shares a batch, and what becomes of rows that fail, are late, or are taken back."""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from ponder import policies
from ponder.engine.loop import Exits
from ponder.errors import ArgumentError, PonderError
from ponder.policies import ExitPolicy
from ponder.serving import WindowBatcher


class Recorder:
    """Runs batches of numbers, remembers them, and holds the first one up."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[int], ExitPolicy | None]] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, examples: Sequence[Any], policy: ExitPolicy | None, row_ids: Sequence[int]) -> Exits:
        self.batches.append((list(examples), policy))
        self.begun.set()
        assert self.go_on.wait(30)
        if -1 in examples:
            raise ValueError("minus one")
        return Exits(torch.tensor([[float(number)] for number in examples]), torch.ones(len(examples)).long())


def held(**options: Any) -> tuple[Recorder, WindowBatcher]:
    """A batcher whose first batch, of the number 0, has begun and is held up."""
    recorder = Recorder()
    batcher = WindowBatcher(recorder, window=0.0, **options)
    batcher.submit(0)
    assert recorder.begun.wait(30)
    return recorder, batcher


def test_rows_share_a_batch_by_policy_in_their_order() -> None:
    recorder, batcher = held(max_batch=3)
    other = policies.FixedStep(2)
    futures = [batcher.submit(n, policy=other if n in (2, 4) else None) for n in range(1, 7)]
    recorder.go_on.set()
    assert [future.result().output.item() for future in futures] == [1, 2, 3, 4, 5, 6]
    assert recorder.batches[1:] == [([1, 3, 5], None), ([2, 4], policies.FixedStep(2)), ([6], None)]
    batcher.close()


def test_a_row_that_fails_fails_alone() -> None:
    recorder, batcher = held(max_batch=8)
    futures = [batcher.submit(n) for n in (1, 2, -1, 3, 4)]
    recorder.go_on.set()
    assert [future.result().output.item() for future in futures if future is not futures[2]] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="minus one"):
        futures[2].result()
    batcher.close()


def test_cancelled_and_late_rows_are_not_computed() -> None:
    now = [0.0]
    recorder, batcher = held(clock=lambda: now[0])
    kept, gone, late = batcher.submit(1, deadline=10.0), batcher.submit(2), batcher.submit(3, deadline=1.0)
    assert gone.cancel()
    now[0] = 5.0
    recorder.go_on.set()
    assert kept.result().exit_step == 1
    with pytest.raises(TimeoutError):
        late.result()
    assert recorder.batches[1] == ([1], None)
    batcher.close()


def test_cancelled_rows_give_their_places_back_and_fill_no_batch() -> None:
    recorder, batcher = held(max_batch=2, max_waiting=4)
    gone = [batcher.submit(n) for n in range(1, 5)]
    assert all(future.cancel() for future in gone)
    kept = [batcher.submit(n, block=False) for n in range(5, 9)]
    recorder.go_on.set()
    assert [future.result().output.item() for future in kept] == [5, 6, 7, 8]
    assert [batch for batch, _ in recorder.batches] == [[0], [5, 6], [7, 8]]
    batcher.close()


def test_a_batcher_outlives_a_window_whose_rows_were_all_cancelled() -> None:
    def run(examples: Sequence[Any], policy: ExitPolicy | None, row_ids: Sequence[int]) -> Exits:
        return Exits(torch.zeros(len(examples), 1), torch.ones(len(examples)).long())

    batcher, taken_back = WindowBatcher(run), threading.Event()
    wait_for = batcher._window._changed.wait_for

    def waits(predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        if timeout is None or taken_back.is_set():
            return wait_for(predicate, timeout)
        batcher._window._waiting[0].future.cancel()  # within the window
        taken_back.set()
        return False

    batcher._window._changed.wait_for = waits  # type: ignore[method-assign, assignment]
    batcher.submit(1)
    assert taken_back.wait(30)
    assert batcher.submit(2).result(30).exit_step == 1
    assert batcher.failure is None
    batcher.close()


def test_bounds() -> None:
    recorder, batcher = held(max_waiting=2)
    batcher.submit(1)
    batcher.submit(2)
    with pytest.raises(queue.Full):
        batcher.submit(3, block=False)
    waits = threading.Thread(target=batcher.submit, args=(3,))
    waits.start()
    recorder.go_on.set()
    waits.join(30)
    assert not waits.is_alive()
    batcher.close()
    with pytest.raises(PonderError, match="closed"):
        batcher.submit(4)


def test_close_answers_what_was_accepted() -> None:
    recorder, batcher = held()
    futures = [batcher.submit(n) for n in (1, 2)]
    recorder.go_on.set()
    batcher.close()
    assert [future.result(0).output.item() for future in futures] == [1, 2]


def test_close_cancels_what_has_not_begun() -> None:
    recorder, batcher = held()
    futures = [batcher.submit(n) for n in (1, 2)]
    futures[1].add_done_callback(lambda _: recorder.go_on.set())  # only now the batch before may end
    batcher.close(cancel=True)
    assert all(future.cancelled() for future in futures)
    assert len(recorder.batches) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_thread_ends_all_rows_hear_of_it() -> None:
    def run(examples: Sequence[Any], policy: ExitPolicy | None, row_ids: Sequence[int]) -> Exits:
        assert begin.wait(30)
        raise SystemExit

    begin = threading.Event()
    batcher = WindowBatcher(run, max_batch=2)
    futures = [batcher.submit(n) for n in range(5)]
    assert futures[4].cancel()
    begin.set()
    assert all(isinstance(future.exception(30), SystemExit) for future in futures[:4])
    assert isinstance(batcher.failure, SystemExit)
    with pytest.raises(PonderError, match="ended with SystemExit"):
        batcher.submit(1)
    batcher.close()


def test_a_batch_that_is_answered_with_another_number_of_rows_fails() -> None:
    def run(examples: Sequence[Any], policy: ExitPolicy | None, row_ids: Sequence[int]) -> Exits:
        return Exits(torch.zeros(2, 1), torch.ones(2).long())

    batcher = WindowBatcher(run, window=0.0)
    with pytest.raises(PonderError, match="a batch of 1 rows was answered with 2"):
        batcher.submit(1).result(30)
    batcher.close()


def test_a_batch_that_has_begun_ends_and_tells_what_is_late() -> None:
    now = [0.0]
    recorder, batcher = held(clock=lambda: now[0])

    def run(examples: Sequence[Any], policy: ExitPolicy | None, row_ids: Sequence[int]) -> Exits:
        now[0] = 2.0
        return recorder(examples, policy, row_ids)

    batcher._window._run = run
    late, early, never = batcher.submit(1, deadline=1.0), batcher.submit(2, deadline=3.0), batcher.submit(3)
    recorder.go_on.set()
    assert [future.result(30).timed_out for future in (late, early, never)] == [True, False, False]
    for deadline in (float("nan"), True, "1"):
        with pytest.raises(ArgumentError, match="deadline: expected seconds from now"):
            batcher.submit(1, deadline=deadline)  # type: ignore[arg-type]
    batcher.close()


@dataclass(frozen=True)
class PerClass(policies.ExitPolicy):
    """Has a tensor, so that two of them cannot be compared."""

    thresholds: Tensor

    def decide(self, step: policies.StepView, state: Any) -> tuple[Tensor | bool, Any]:
        return step.index >= 1, state


def test_policies_that_cannot_be_compared_share_no_batch() -> None:
    recorder, batcher = held()
    one, two = PerClass(torch.tensor([0.1, 0.2])), PerClass(torch.tensor([0.1, 0.3]))
    futures = [batcher.submit(place, policy=policy) for place, policy in enumerate((one, two, one), start=1)]
    recorder.go_on.set()
    assert [future.result(30).exit_step for future in futures] == [1, 1, 1]
    assert [batch for batch, _ in recorder.batches] == [[0], [1, 3], [2]]
    batcher.close()


def test_a_batcher_that_nobody_holds_ends_and_tells_those_who_wait() -> None:
    """Trap: its thread, and the model, stayed for ever."""
    recorder, batcher = held()
    waiting, worker = batcher.submit(1), batcher._worker
    del batcher
    gc.collect()
    with pytest.raises(PonderError, match="nothing held it any more"):
        waiting.result(30)
    recorder.go_on.set()
    worker.join(30)
    assert not worker.is_alive()
