"""`WindowBatcher`: rows that come within a short window share a batch, for models that a stream cannot run."""

from __future__ import annotations

import itertools
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from ponder._utils.validation import check_int, check_real
from ponder.engine.loop import Exits
from ponder.errors import PonderError
from ponder.inference.streaming.policy_groups import same_policy
from ponder.inference.streaming.requests import DeadlineError, StreamOutput, seconds_of
from ponder.policies import ExitPolicy
from ponder.serving.limits import Limits

__all__ = ["BatchRunner", "WindowBatcher"]

BatchRunner = Callable[[Sequence[Any], ExitPolicy | None, Sequence[int]], Exits]


@dataclass(eq=False)
class _Row:
    number: int
    example: Any
    policy: ExitPolicy | None
    due: float | None
    future: Future[StreamOutput] = field(default_factory=Future)


class WindowBatcher:
    """Answers rows in batches: of those that came while the last batch ran, or within a window after the first.

    Rows of one batch have one policy. A batch that fails is halved, down to the row that is the cause, which fails
    alone. A row whose deadline has passed when its batch begins ends in `TimeoutError`; a batch that has begun is not
    interrupted, and the rows that it answers too late say so (`timed_out`).

    Args:
        run: Examples, their policy (None for the model's own) and their numbers, for seeded sampling, to outputs
            `(rows, …)` and exit steps `(rows,)`.
        max_batch: Rows of a batch.
        window: Seconds that an idle model waits for more rows.
        max_waiting: Rows that may wait before `submit` blocks.
        clock: Seconds, for windows and deadlines.

    Example:
        >>> import torch
        >>> def run(examples, policy, row_ids):
        ...     return Exits(torch.stack(examples) + 1, torch.ones(len(examples), dtype=torch.long))
        >>> batcher = WindowBatcher(run, max_batch=2)
        >>> futures = [batcher.submit(torch.tensor([float(n)])) for n in range(3)]
        >>> [future.result().output.item() for future in futures]
        [1.0, 2.0, 3.0]
        >>> batcher.close()
    """

    def __init__(
        self,
        run: BatchRunner,
        *,
        max_batch: int = 32,
        window: float = 0.002,
        max_waiting: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_int("max_batch", max_batch)
        check_int("max_waiting", max_waiting)
        check_real("window", window)
        self._window = _Window(run, max_batch, window, max_waiting, clock)
        self._worker = threading.Thread(target=self._window.work, name="ponder-window", daemon=True)
        self._worker.start()
        weakref.finalize(self, self._window.abandon)

    @classmethod
    def within(cls, run: BatchRunner, limits: Limits) -> Self:
        """A batcher with the limits of a service.

        Example:
            >>> def run(examples, policy, row_ids):
            ...     return Exits(torch.stack(examples) + 1, torch.ones(len(examples), dtype=torch.long))
            >>> batcher = WindowBatcher.within(run, ponder.serving.Limits(max_batch=2))
            >>> batcher.submit(torch.tensor([1.0])).result().output.item()
            2.0
            >>> batcher.close()
        """
        return cls(run, max_batch=limits.max_batch, window=limits.window, max_waiting=limits.places)

    @property
    def failure(self) -> BaseException | None:
        """What ended the thread that answers, so that no row will be answered any more; None while it works."""
        return self._window.failure

    def submit(
        self, example: Any, *, policy: ExitPolicy | None = None, deadline: float | None = None, block: bool = True
    ) -> Future[StreamOutput]:
        """Hand in one example; arguments and errors as for `ponder.StreamEngine.submit`."""
        beyond = block and threading.current_thread() is self._worker
        return self._window.put(example, policy, deadline, block=block, beyond=beyond)

    def close(self, *, cancel: bool = False) -> None:
        """Take no more rows, and return when the others are answered, or cancelled."""
        self._window.close(cancel=cancel)
        if threading.current_thread() is not self._worker:
            self._worker.join()


class _Window:
    """The rows that wait, and the thread that answers them, which holds no reference to the batcher."""

    def __init__(
        self, run: BatchRunner, max_batch: int, window: float, max_waiting: int, clock: Callable[[], float]
    ) -> None:
        self._run, self._max_batch, self._window, self._clock = run, max_batch, window, clock
        self._max_waiting = max_waiting
        self._waiting: list[_Row] = []
        self._numbers = itertools.count()
        self._closed = False
        self.failure: BaseException | None = None
        self._changed = threading.Condition()

    def put(
        self, example: Any, policy: ExitPolicy | None, deadline: float | None, *, block: bool, beyond: bool
    ) -> Future[StreamOutput]:
        """Take a row; `beyond` the limit where nothing could free a place."""
        due = None if deadline is None else self._clock() + seconds_of(deadline)
        row = _Row(next(self._numbers), example, policy, due)
        with self._changed:
            if block and not beyond:
                self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._max_waiting)
            elif not block and len(self._waiting) >= self._max_waiting:
                raise queue.Full(f"{self._max_waiting} rows are waiting")
            if self.failure is not None:
                raise PonderError(
                    f"the thread that answers has ended with {self.failure!r}, and no more rows are taken. "
                    "Build another WindowBatcher."
                ) from self.failure
            if self._closed:
                raise PonderError("the batcher is closed and takes no more rows.")
            self._waiting.append(row)
            self._changed.notify_all()
        row.future.add_done_callback(self._hear_of_cancelling)
        return row.future

    def close(self, *, cancel: bool = False) -> None:
        """Take no more rows; those that wait are answered, or cancelled."""
        with self._changed:
            self._closed = True
            rows = list(self._waiting) if cancel else []
            self._changed.notify_all()
        for row in rows:
            row.future.cancel()

    def abandon(self) -> None:
        """End what nobody closed: rows that wait are told so, and the thread ends."""
        gone = PonderError(
            "the WindowBatcher was gone before this row was answered: nothing held it any more. Keep it until then, "
            "and close it."
        )
        with self._changed:
            self._closed = True
            rows, self._waiting = self._waiting, []
            self._changed.notify_all()
        _fail(rows, gone)

    def work(self) -> None:
        """Answer rows until there will be no more."""
        rows: Sequence[_Row] = ()
        try:
            while rows := self._next():
                self._answer(rows)
        except BaseException as error:
            self._end_with(error, rows)
            raise

    def _hear_of_cancelling(self, future: Future[StreamOutput]) -> None:
        """Free the place of a row that its caller no longer wants."""
        if future.cancelled():
            with self._changed:
                self._waiting = [row for row in self._waiting if row.future is not future]
                self._changed.notify_all()

    def _end_with(self, error: BaseException, taken: Sequence[_Row]) -> None:
        """Answer everything that is still here with an error: nobody else will."""
        with self._changed:
            self._closed, self.failure = True, error
            rows, self._waiting = [*taken, *self._waiting], []
            self._changed.notify_all()
        _fail(rows, error)

    def _next(self) -> list[_Row]:
        """The next batch: the oldest row, and those after it with the same policy; none when all is done."""
        with self._changed:
            while True:
                idle = not self._waiting
                self._changed.wait_for(lambda: self._closed or bool(self._waiting))
                if idle:
                    self._changed.wait_for(lambda: self._closed or len(self._waiting) >= self._max_batch, self._window)
                if self._waiting:
                    break
                if self._closed:
                    return []
            policy = self._waiting[0].policy
            taken = [row for row in self._waiting if same_policy(row.policy, policy)][: self._max_batch]
            places = {id(row) for row in taken}
            self._waiting = [row for row in self._waiting if id(row) not in places]
            self._changed.notify_all()
        return taken

    def _answer(self, rows: Sequence[_Row]) -> None:
        running, now = [], self._clock()
        for row in rows:
            if not row.future.set_running_or_notify_cancel():
                continue
            if row.due is not None and row.due <= now:
                row.future.set_exception(DeadlineError("the deadline passed before the row's batch began"))
                continue
            running.append(row)
        self._run_rows(running)

    def _run_rows(self, rows: Sequence[_Row]) -> None:
        if not rows:
            return
        try:
            exits = self._run([row.example for row in rows], rows[0].policy, [row.number for row in rows])
            answers = list(zip(exits.outputs.unbind(0), exits.exit_step.tolist(), strict=True))
            if len(answers) != len(rows):
                raise PonderError(f"a batch of {len(rows)} rows was answered with {len(answers)}.")
        except Exception as error:
            if len(rows) == 1:
                rows[0].future.set_exception(error)
                return
            half = len(rows) // 2
            self._run_rows(rows[:half])
            self._run_rows(rows[half:])
            return
        now = self._clock()
        for row, (output, step) in zip(rows, answers, strict=True):
            late = row.due is not None and row.due <= now
            with suppress(Exception):  # of a callback
                row.future.set_result(StreamOutput(output, step, late))


def _fail(rows: Sequence[_Row], error: BaseException) -> None:
    for row in rows:
        with suppress(BaseException):  # it is answered or cancelled already, or a callback raises
            row.future.set_exception(error)
