"""Calls of a reference: concurrent, at a limited rate, and repeated after a failure.

An `Asker` calls the reference on a pool of threads. Each call waits for its turn (`Pace`), is
repeated with growing delays, and puts a `Reply` for each row into a queue, from which `take` reads.
If a batch fails, the reference is called on its rows one by one.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

from ponder._utils.checks import library
from ponder.cascade.stages import Input
from ponder.errors import PonderError

__all__ = ["Asker", "Asking", "Pace", "Reply"]

Labels: TypeAlias = Iterable[object]
"""A label for each row; None or an exception if there is none."""
Ask: TypeAlias = Callable[[list[Input]], Labels | Awaitable[Labels]]
"""A function from rows to their labels, or a coroutine function."""
Keyed: TypeAlias = tuple[str, Input]
"""A key, and its row."""


@dataclass(frozen=True)
class Asking:
    """Settings of the calls of a reference.

    Args:
        concurrency: Number of concurrent calls.
        batch_size: Rows of a call.
        per_minute: Limit of calls a minute; None for no limit.
        attempts: Number of calls after which a row has an error.
        backoff: Seconds before the second call; they double, up to a minute.
        timeout: Seconds that a coroutine may take. A plain function must limit its time itself.
    """

    concurrency: int = 1
    batch_size: int = 1
    per_minute: float | None = None
    attempts: int = 3
    backoff: float = 1.0
    timeout: float | None = None


@dataclass(frozen=True)
class Reply:
    """The reference's answer to a row, or the error after the last attempt."""

    key: str
    row: Input
    label: object = None
    error: Exception | None = None


class Pace:
    """Start times of calls, evenly spaced."""

    def __init__(self, per_minute: float | None) -> None:
        self._interval = 0.0
        if per_minute:
            self._interval = 60.0 / per_minute
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, now: float) -> float:
        """Reserve the next start time, and return the seconds until then."""
        with self._lock:
            start = max(now, self._next)
            self._next = start + self._interval
        return start - now


class Asker:
    """Threads that call a reference, until they are closed.

    Args:
        ask: The function.
        asking: The settings of its calls.
        arrived: Called with each answer as soon as it has come, on the thread of the call.
    """

    def __init__(
        self, ask: Ask, asking: Asking, arrived: Callable[[Reply], object] = lambda reply: None
    ) -> None:
        self._ask = ask
        self._asking = asking
        self._pace = Pace(asking.per_minute)
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(asking.concurrency, thread_name_prefix="ponder-asking")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: threading.Thread | None = None
        self._loop_lock = threading.Lock()
        self._arrived = arrived
        self._replies = queue.SimpleQueue[Reply]()
        self.running = 0
        """Number of rows that were submitted and not yet taken."""

    def submit(self, rows: Sequence[Keyed]) -> None:
        """Ask about rows, which come with their keys."""
        self.running += len(rows)
        size = self._asking.batch_size
        for start in range(0, len(rows), size):
            self._pool.submit(self._answer, rows[start : start + size])

    def take(self, timeout: float | None = None) -> list[Reply]:
        """Return the replies that have come; wait for the first, up to `timeout` seconds."""
        replies = list[Reply]()
        try:
            replies.append(self._replies.get(timeout=timeout))
            while True:
                replies.append(self._replies.get_nowait())
        except queue.Empty:
            pass
        self.running -= len(replies)
        return replies

    def close(self) -> list[Reply]:
        """Start no further call, wait for those that run, and return their replies."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._loop is not None:
            assert self._loop_thread is not None
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop_thread.join()
            self._loop.close()
        return self.take(timeout=0.0)

    def _answer(self, rows: Sequence[Keyed]) -> None:
        """Call the reference on one of the threads; if it fails on a batch, ask row by row."""
        is_batch = len(rows) > 1
        attempts = self._asking.attempts
        if is_batch:
            attempts = 1  # each row has its attempts afterwards
        labels: list[object]
        try:
            labels = self._call([row for _, row in rows], attempts)
        except Exception as error:  # the reference is code of the user, which may raise anything
            labels = [error] * len(rows)
        for (key, row), label in zip(rows, labels, strict=True):
            failed = label is None or isinstance(label, Exception)
            if failed and is_batch:
                self._answer([(key, row)])
            elif isinstance(label, Exception):
                self._replies.put(Reply(key, row, error=label))
            else:
                reply = Reply(key, row, label)
                self._arrived(reply)
                self._replies.put(reply)

    def _call(self, rows: list[Input], attempts: int) -> list[object]:
        """Return the labels of rows, after several attempts if calls fail."""
        tenacity = library("tenacity", "asking a reference", "cascade")
        closing = tenacity.stop_when_event_set(self._stop)
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(attempts) | closing,
            wait=tenacity.wait_random_exponential(self._asking.backoff, max=60),
            sleep=tenacity.sleep_using_event(self._stop),
            reraise=True,
        )
        labels: list[object] = retrying(self._call_once, rows)
        return labels

    def _call_once(self, rows: list[Input]) -> list[object]:
        """Call the reference in its turn, and check that there is a label for each row."""
        self._stop.wait(self._pace.wait(time.monotonic()))
        answers = self._ask(rows)
        if inspect.isawaitable(answers):
            answers = self._await(answers)
        labels = list(answers)
        if len(labels) != len(rows):
            raise PonderError(f"the reference gave {len(labels)} labels for {len(rows)} rows.")
        if len(rows) == 1 and labels[0] is None:
            raise PonderError("the reference gave no answer (None).")
        return labels

    def _await(self, answers: Awaitable[Labels]) -> Labels:
        """Run a coroutine to its end.

        All coroutines run on one event loop, since clients of HTTP keep connections of a loop.
        """
        with self._loop_lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                run = self._loop.run_forever
                self._loop_thread = threading.Thread(target=run, name="ponder-loop", daemon=True)
                self._loop_thread.start()

        async def limited() -> Labels:
            return await asyncio.wait_for(answers, self._asking.timeout)

        return asyncio.run_coroutine_threadsafe(limited(), self._loop).result()
