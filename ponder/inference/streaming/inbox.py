"""The rows that were accepted and wait for a slot: bounded, and shared by all threads."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable

from ponder.errors import PonderError
from ponder.inference.streaming.ticket import Ticket

__all__ = ["Inbox"]


class Inbox:
    """Waiting rows, in order of arrival among those that may share a batch.

    Args:
        bound: How many rows may wait.
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._waiting: dict[Hashable, deque[Ticket]] = {}
        self._size = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return self._size

    @property
    def closed(self) -> bool:
        """Whether nothing more is accepted."""
        return self._closed

    def check_open(self) -> None:
        """Raise `PonderError` where nothing more is accepted."""
        if self._closed:
            raise PonderError("the engine is closed and takes no more rows. Build another ponder.StreamEngine.")

    def put(self, ticket: Ticket, block: bool, timeout: float | None) -> None:
        """Accept a row, and wait for a place where there is none.

        Raises:
            queue.Full: There is no place, and `block` is False or `timeout` seconds are over.
            PonderError: The engine is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._size < self.bound, timeout if block else 0)
            self.check_open()
            if self._size >= self.bound:
                raise queue.Full(f"{self.bound} rows are waiting")
            self._waiting.setdefault(ticket.signature, deque()).append(ticket)
            self._size += 1
            self._changed.notify_all()

    def counts(self) -> dict[Hashable, int]:
        """How many rows wait, by signature."""
        with self._changed:
            return {signature: len(waiting) for signature, waiting in self._waiting.items()}

    def take(self, signature: Hashable, fits: Callable[[Ticket], bool]) -> list[Ticket]:
        """Take the oldest waiting rows of a signature, one after the other, as long as they fit."""
        taken: list[Ticket] = []
        with self._changed:
            waiting = self._waiting.get(signature, deque())
            while waiting and fits(waiting[0]):
                taken.append(waiting.popleft())
            self._shrink(signature, len(taken))
        return taken

    def discard(self, ticket: Ticket) -> bool:
        """Take a given row out; False where it does not wait here."""
        with self._changed:
            signature = ticket.signature
            if ticket not in self._waiting.get(signature, ()):
                return False
            self._waiting[signature].remove(ticket)
            self._shrink(signature, 1)
            return True

    def close(self) -> None:
        """Accept nothing more; who waits for a place is told."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until a row is here, or the inbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._size > 0)

    def _shrink(self, signature: Hashable, count: int) -> None:
        if not self._waiting.get(signature):
            self._waiting.pop(signature, None)
        self._size -= count
        self._changed.notify_all()
