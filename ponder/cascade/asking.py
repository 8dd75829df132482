"""Calls of a reference: in parallel, with a limit a minute, and again after a failure."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ponder._utils.checks import library
from ponder.errors import PonderError

__all__ = ["Asker", "Asking", "Pace", "Reply"]

Ask = Callable[[list[Any]], Any]
"""A function from rows to a label for each, at once or awaited."""


@dataclass(frozen=True)
class Asking:
    """How a reference is called.

    Args:
        concurrency: Calls at once.
        batch_size: Rows of a call.
        per_minute: Calls a minute at most; None for no limit.
        attempts: Calls until a row is given up.
        backoff: Seconds before the second call; they double, up to a minute.
        timeout: Seconds that an awaited call may take; a plain function must limit itself.
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
    row: Any
    label: Any = None
    error: Exception | None = None


class Pace:
    """Times at which calls may begin, evenly spaced."""

    def __init__(self, per_minute: float | None) -> None:
        self._apart = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, now: float) -> float:
        """Take the next place, and return the seconds until then."""
        with self._lock:
            start = max(now, self._next)
            self._next = start + self._apart
        return start - now


class Asker:
    """Threads that call a reference, until they are closed.

    Args:
        ask: The function.
        asking: How it is called.
        arrived: Called on the thread of a call with each answer, as soon as it is there.
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
        """Rows that were handed in and have not come back."""

    def submit(self, rows: Sequence[tuple[str, Any]]) -> None:
        """Hand in rows with their keys."""
        self.running += len(rows)
        size = self._asking.batch_size
        for start in range(0, len(rows), size):
            self._pool.submit(self._answer, rows[start : start + size])

    def take(self, timeout: float | None = None) -> list[Reply]:
        """Return the replies that have come; wait for the first, up to a time."""
        found = list[Reply]()
        try:
            found.append(self._replies.get(timeout=timeout))
            while True:
                found.append(self._replies.get_nowait())
        except queue.Empty:
            pass
        self.running -= len(found)
        return found

    def close(self) -> list[Reply]:
        """Begin no further call, wait for those that run, and return their replies."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._loop is not None:
            assert self._loop_thread is not None
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop_thread.join()
            self._loop.close()
        return self.take(timeout=0.0)

    def _answer(self, rows: Sequence[tuple[str, Any]]) -> None:
        """Call the reference on one thread; rows that fail together are called one by one."""
        try:
            labels = self._call([row for _, row in rows], attempts=1 if len(rows) > 1 else None)
        except Exception as error:
            labels = [error] * len(rows)
        for (key, row), label in zip(rows, labels, strict=True):
            failed = label is None or isinstance(label, Exception)
            if failed and len(rows) > 1:
                self._answer([(key, row)])
            elif isinstance(label, Exception):
                self._replies.put(Reply(key, row, error=label))
            else:
                reply = Reply(key, row, label)
                self._arrived(reply)
                self._replies.put(reply)

    def _call(self, rows: list[Any], attempts: int | None) -> list[Any]:
        tenacity = library("tenacity", "asking a reference", "cascade")
        stopped = tenacity.stop_when_event_set(self._stop)
        tries = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(attempts or self._asking.attempts) | stopped,
            wait=tenacity.wait_random_exponential(self._asking.backoff, max=60),
            sleep=tenacity.sleep_using_event(self._stop),
            reraise=True,
        )
        labels: list[Any] = tries(self._call_once, rows)
        return labels

    def _call_once(self, rows: list[Any]) -> list[Any]:
        self._stop.wait(self._pace.wait(time.monotonic()))
        found = self._ask(rows)
        if inspect.isawaitable(found):
            found = self._awaited(found)
        labels = list(found)
        if len(labels) != len(rows):
            raise PonderError(f"the reference gave {len(labels)} labels for {len(rows)} rows.")
        if len(rows) == 1 and labels[0] is None:
            raise PonderError("the reference gave no answer (None).")
        return labels

    def _awaited(self, found: Awaitable[Any]) -> Any:
        """Run an awaited call on one event loop, that of all calls."""
        with self._loop_lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                run = self._loop.run_forever
                self._loop_thread = threading.Thread(target=run, name="ponder-loop", daemon=True)
                self._loop_thread.start()

        async def limited() -> Any:
            return await asyncio.wait_for(found, self._asking.timeout)

        return asyncio.run_coroutine_threadsafe(limited(), self._loop).result()
