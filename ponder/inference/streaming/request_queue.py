"""The rows that were accepted and wait for a slot: bounded, and shared by all threads of one process."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable

from ponder.errors import PonderError
from ponder.inference.streaming.requests import Request

__all__ = ["RequestQueue"]


class RequestQueue:
    """Waiting rows, in order of arrival among those that may share a batch.

    Args:
        bound: How many rows may wait.
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._waiting: dict[Hashable, deque[Request]] = {}
        self._size = 0
        self.closed = False
        """Whether nothing more is accepted."""
        self.failure: BaseException | None = None
        """What ended the thread that answers; None where nothing did."""
        self._changed = threading.Condition()
        self._process = os.getpid()

    def __len__(self) -> int:
        return self._size

    @property
    def elsewhere(self) -> bool:
        """Whether this is a copy in a forked process: the thread that answers is not here, and locks may be held."""
        return self._process != os.getpid()

    def check_process(self) -> None:
        """Raise `PonderError` where nobody is here to answer."""
        if self.elsewhere:
            raise PonderError(
                "the engine runs in the process that built it, and this one was forked from that. "
                "Build a ponder.StreamEngine in each process."
            )

    def check_open(self) -> None:
        """Raise `PonderError` where nothing more is accepted, or nobody is here to answer."""
        if self.closed or self.elsewhere:
            self.check_process()
            if self.failure is not None:
                raise PonderError(
                    f"the thread that answers has ended with {self.failure!r}, and no more rows are taken. "
                    "Build another ponder.StreamEngine."
                ) from self.failure
            raise PonderError("the engine is closed and takes no more rows. Build another ponder.StreamEngine.")

    def put(self, request: Request, block: bool, timeout: float | None, *, beyond: bool = False) -> None:
        """Accept a row, and wait for a place where there is none. The caller has looked at `check_open`.

        Args:
            request: The row.
            block: Whether to wait.
            timeout: Seconds to wait; None for any time.
            beyond: Whether to accept the row beyond the bound instead of waiting.

        Raises:
            queue.Full: There is no place, and `block` is False or `timeout` seconds are over.
            PonderError: The engine is closed.
        """
        with self._changed:
            if self._size >= self.bound and not (beyond and block):
                self._changed.wait_for(lambda: self.closed or self._size < self.bound, timeout if block else 0)
                if self._size >= self.bound and not self.closed:
                    raise queue.Full(f"{self.bound} rows are waiting")
            if self.closed:
                self.check_open()
            self._waiting.setdefault(request.signature, deque()).append(request)
            self._size += 1
            self._changed.notify_all()

    def counts(self) -> dict[Hashable, int]:
        """How many rows wait, by signature."""
        with self._changed:
            return {signature: len(waiting) for signature, waiting in self._waiting.items()}

    def take(self, signature: Hashable, fits: Callable[[int], bool]) -> list[Request]:
        """Take the oldest waiting rows of a signature, one after the other, as long as their lengths fit."""
        taken: list[Request] = []
        with self._changed:
            waiting = self._waiting.get(signature, deque())
            while waiting and fits(waiting[0].length):
                taken.append(waiting.popleft())
            self._shrink(signature, len(taken))
        return taken

    def take_all(self) -> list[Request]:
        """Take everything that waits."""
        with self._changed:
            taken = [request for waiting in self._waiting.values() for request in waiting]
            self._waiting.clear()
            self._size = 0
            self._changed.notify_all()
        return taken

    def discard(self, request: Request) -> bool:
        """Take a given row out; False where it does not wait here."""
        with self._changed:
            signature = request.signature
            if request not in self._waiting.get(signature, ()):
                return False
            self._waiting[signature].remove(request)
            self._shrink(signature, 1)
            return True

    def close(self, failure: BaseException | None = None) -> None:
        """Accept nothing more, for a failure where one is given; who waits for a place is told."""
        with self._changed:
            self.closed, self.failure = True, self.failure or failure
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until a row is here, or the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._size > 0)

    def _shrink(self, signature: Hashable, count: int) -> None:
        if not self._waiting.get(signature):
            self._waiting.pop(signature, None)
        self._size -= count
        self._changed.notify_all()
