"""The rows that were accepted and wait for a slot: bounded, and shared by all threads."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Hashable

from ponder.errors import PonderError
from ponder.streaming.ticket import Ticket

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

    def peek(self, signature: Hashable) -> Ticket | None:
        """The oldest waiting row of a signature."""
        with self._changed:
            waiting = self._waiting.get(signature)
            return waiting[0] if waiting else None

    def pop(self, signature: Hashable) -> Ticket:
        """Take the oldest waiting row of a signature."""
        with self._changed:
            return self._removed(signature, self._waiting[signature][0])

    def discard(self, ticket: Ticket) -> bool:
        """Take a given row out; False where it does not wait here."""
        with self._changed:
            signature = ticket.signature
            if ticket not in self._waiting.get(signature, ()):
                return False
            self._removed(signature, ticket)
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

    def _removed(self, signature: Hashable, ticket: Ticket) -> Ticket:
        waiting = self._waiting[signature]
        waiting.remove(ticket)  # by identity, and at once where it is the first
        if not waiting:
            del self._waiting[signature]
        self._size -= 1
        self._changed.notify_all()
        return ticket
