"""Calls of a reference: concurrent, at a limited rate, and repeated after a failure.

An `Asker` calls the reference on a pool of threads. Each call waits for its turn (`Pace`), is
repeated with growing delays, and puts a `Reply` for each row into a queue, from which `take` reads.
If a batch fails, the reference is called on its rows one by one.

Two kinds of failure are none of a row. A reference that fails on many rows in a row is down
(`Breaker`): nothing more is sent. One that returns labels of a wrong number or type is used
wrongly: it is an error of the caller, and nothing is asked again.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ponder._utils.checks import library
from ponder.errors import ArgumentError, ArgumentTypeError, PonderError

__all__ = ["Ask", "Asker", "Asking", "Breaker", "Pace", "ReferenceDownError", "Reply"]

Labels: TypeAlias = Iterable[object]
"""A label for each row; None or an exception if there is none."""
Ask: TypeAlias = Callable[[list[Any]], Labels | Awaitable[Labels]]
"""A function from rows to their labels, or a coroutine function."""
Keyed: TypeAlias = tuple[str, Any]
"""A key, and its row."""

_PROBES = 4
"""Probes in a row that must fail before the reference is down: 15 seconds at the usual backoff."""
_LONGEST = 60.0
"""The longest delay before a repeated call, in seconds."""


class ReferenceDownError(PonderError):
    """The reference failed on so many rows in a row that no more is sent."""


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
        failures: Number of rows in a row that fail, each after its attempts, before only single
            rows are sent, as probes. If these fail too, the reference is down, and all other rows
            that need it have the error `ReferenceDownError`. None to send every row.
    """

    concurrency: int = 1
    batch_size: int = 1
    per_minute: float | None = None
    attempts: int = 3
    backoff: float = 1.0
    timeout: float | None = None
    failures: int | None = 5


@dataclass(frozen=True)
class Reply:
    """The reference's answer to a row, or the error after the last attempt."""

    key: str
    row: Any
    label: Any = None
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


class Breaker:
    """A circuit breaker: whether a reference is up, by the rows in a row on which it failed.

    closed: rows are sent. After some failures in a row it is
    open:   one row at a time is sent, after a growing delay. A success closes it; after `_PROBES`
            failures it is
    down:   nothing is sent.

    Args:
        failures: Failures in a row that open it; None to keep it closed.
        backoff: Seconds before the first probe; they double.
    """

    def __init__(self, failures: int | None, backoff: float) -> None:
        self.probing = threading.Lock()
        """Held by the row that is sent while the breaker is open."""
        self._failures = failures
        self._backoff = backoff
        self._failed = 0
        self._failed_probes = 0

    def is_closed(self) -> bool:
        """Return whether every row is sent."""
        return self._failures is None or self._failed < self._failures

    @property
    def down(self) -> bool:
        """Whether nothing is sent any more."""
        return self._failed_probes >= _PROBES

    @property
    def delay(self) -> float:
        """Seconds before the next probe."""
        return min(self._backoff * 2.0**self._failed_probes, _LONGEST)

    def succeed(self) -> None:
        """Note a call that succeeded."""
        self._failed = 0
        self._failed_probes = 0

    def fail(self, *, probe: bool) -> None:
        """Note a row that failed after all its attempts, or as a probe."""
        # Rows that were under way when it opened are no probes, however many they are.
        if probe:
            self._failed_probes += 1
        else:
            self._failed += 1


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
        self._breaker = Breaker(asking.failures, asking.backoff)
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(asking.concurrency, thread_name_prefix="ponder-asking")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: threading.Thread | None = None
        self._loop_lock = threading.Lock()
        self._arrived = arrived
        self._replies = queue.SimpleQueue[Reply]()
        self.running = 0
        """Number of rows that were submitted and not yet taken."""
        self.misused: Exception | None = None
        """The error of a caller whose reference returns labels of a wrong number or type."""
        self.down: ReferenceDownError | None = None
        """The error of all further rows, once the reference is down."""

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
        """Ask about rows on one of the threads, and put their replies into the queue."""
        labels: list[object] = [None] * len(rows)
        if len(rows) > 1 and self._breaker.is_closed():
            # If the reference, code of the user, fails on them, each row has its attempts below.
            with suppress(Exception):
                labels = self._call([row for _, row in rows], attempts=1)
                self._breaker.succeed()
        for (key, row), label in zip(rows, labels, strict=True):
            if label is None or isinstance(label, Exception):
                self._answer_row(key, row)
            else:
                self._put(Reply(key, row, label))

    def _answer_row(self, key: str, row: Any) -> None:
        """Ask about one row, several times if calls fail."""
        try:
            (label,) = self._call_guarded(row)
            if isinstance(label, Exception):
                raise label
        except Exception as error:
            self._put(Reply(key, row, error=error))
        else:
            self._put(Reply(key, row, label))

    def _put(self, reply: Reply) -> None:
        if reply.error is None:
            self._arrived(reply)
        self._replies.put(reply)

    def _call_guarded(self, row: Any) -> list[object]:
        """Return the label of a row, unless the reference is down or misused."""
        if self._breaker.is_closed():
            return self._call_noted(row, self._asking.attempts, probe=False)
        with self._breaker.probing:
            if self._breaker.is_closed():  # by the probe of another thread
                return self._call_noted(row, self._asking.attempts, probe=False)
            if self.down is not None:
                raise self.down
            self._stop.wait(self._breaker.delay)
            return self._call_noted(row, 1, probe=True)

    def _call_noted(self, row: Any, attempts: int, *, probe: bool) -> list[object]:
        """Return the label of a row, and note in the breaker whether the call succeeds."""
        if self.misused is not None:
            raise self.misused
        try:
            labels = self._call([row], attempts)
        except Exception as error:
            if error is not self.misused:
                self._breaker.fail(probe=probe)
            if self._breaker.down:
                reason = f"{type(error).__name__}: {error}"
                self.down = ReferenceDownError(f"The reference is down; it last said: {reason}")
            raise
        self._breaker.succeed()
        return labels

    def _call(self, rows: list[Any], attempts: int) -> list[object]:
        """Return the labels of rows, after several attempts if calls fail."""
        tenacity = library("tenacity", "asking a reference", "cascade")
        closing = tenacity.stop_when_event_set(self._stop)
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(attempts) | closing,
            wait=tenacity.wait_random_exponential(self._asking.backoff, max=_LONGEST),
            sleep=tenacity.sleep_using_event(self._stop),
            reraise=True,
        )
        labels: list[object] = retrying(self._call_once, rows)
        self.misused = self.misused or _misuse(labels, rows)
        if self.misused is not None:
            self._stop.set()
            raise self.misused
        return labels

    def _call_once(self, rows: list[Any]) -> list[object]:
        """Call the reference in its turn."""
        self._stop.wait(self._pace.wait(time.monotonic()))
        answers = self._ask(rows)
        if inspect.isawaitable(answers):
            answers = self._await(answers)
        labels = list(answers)
        if len(rows) == len(labels) == 1 and labels[0] is None:
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


def _misuse(labels: Sequence[object], rows: Sequence[Any]) -> Exception | None:
    """Return the error of a reference that does not return one label for each row."""
    if len(labels) != len(rows):
        return ArgumentError(
            "reference",
            expected=f"a label for each row, {len(rows)} here",
            got=f"{len(labels)}",
            remedy="Return None for a row without an answer.",
        )
    for label in labels:
        if label is not None and not isinstance(label, str | int | float | np.generic | Exception):
            return ArgumentTypeError(
                "reference",
                expected="labels that are texts or numbers",
                got=f"a {type(label).__name__} ({label!r:.80})",
                remedy="Unpack the answer, so that a label is one name.",
            )
    return None
