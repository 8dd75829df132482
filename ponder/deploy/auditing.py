"""The ledger of a service: late audits of a share of its answers, and a gate for the promise.

An answer from an early exit or a cheap stage is audited with probability `share`, after it was
given. As long as the bound stays within the level, early answers are given. If not, requests are
answered at full depth, which cannot differ, until the bound allows early answers again. The state
is a JSON file, which is written before an audit begins.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ponder._utils.checks import check_real, check_share
from ponder._utils.seals import read_sealed, write_sealed
from ponder.errors import ArgumentError, CheckpointError
from ponder.statistics.ledger import Ledger, fair_coin

__all__ = ["ServedLedger"]

_FORMAT = "ponder-ledger-1"
_FORWARD = 0.9
"""The share of the level below which early answers resume, so that the gate does not flutter."""
_log = logging.getLogger("ponder.server")


class ServedLedger:
    """A promise on the answers that a service gave: at most `level` of them differ from full depth.

    Any thread may call it.

    Args:
        level: The share of the answers that may differ, in (0, 1).
        confidence: The probability with which the bound holds at all times.
        share: The probability of an audit, in (0, 1]; an audit costs an answer at full depth.
        path: A JSON file in which the state survives a restart; None keeps it in memory.
        pending: The number of unfinished audits from which on answers are deferred.
        coin: A function that returns numbers in [0, 1), for tests.

    Example:
        >>> from ponder.deploy.auditing import ServedLedger
        >>> ledger = ServedLedger(level=0.05, share=0.2)
        >>> ledger.allows(1)  # too early: nothing was answered
        False
        >>> ledger.note([False] * 100)  # at full depth, so nothing is audited
        []
        >>> ledger.allows(1)
        True
    """

    def __init__(
        self,
        level: float,
        confidence: float = 0.95,
        share: float = 0.05,
        path: Path | None = None,
        *,
        pending: int = 64,
        coin: Callable[[], float] | None = None,
    ) -> None:
        check_share("level", level)
        check_real("share", share, 0.0, 1.0, open_low=True)
        self.level = level
        self.share = share
        self.path = path
        self.answers = 0
        self.ledger = Ledger(confidence, late=True)
        self._most_pending = pending
        self._left = 0
        self._lock = threading.RLock()
        self._coin = coin or fair_coin
        self._deferring = True
        if path is not None and path.exists():
            self._resume(path, confidence)
        # Audits of an earlier run, which will never end.
        self._left = self.ledger.pending
        self._write(closed=False)

    @property
    def bound(self) -> float:
        """The bound on the share of the answers that differ."""
        return self.ledger.bound / max(self.answers, 1)

    @property
    def statement(self) -> str:
        """The promise so far, in words."""
        if not self.answers:
            return "No answers yet."
        sentence = self.ledger.sentence(self.answers, "full depth")
        return f"{sentence}; {self.ledger.audits:,} were audited."

    def allows(self, rows: int) -> bool:
        """Return whether so many answers may be early, even if all differ; log a change."""
        with self._lock:
            level = self.level
            if self._deferring:
                level *= _FORWARD
            within = self.ledger.bound + rows <= level * (self.answers + rows)
            allowed = within and self.ledger.pending - self._left < self._most_pending
            if allowed == self._deferring:
                word = "early answers are given" if allowed else "answers are deferred"
                _log.warning("%s: %s", word, self.statement)
            self._deferring = not allowed
        return allowed

    def note(self, early: Sequence[bool]) -> list[int]:
        """Count answers, draw for the early ones, and return the places that are audited."""
        audited = list[int]()
        with self._lock:
            for place, each in enumerate(early):
                self.answers += 1
                if each and self.ledger.throw(self.share, self._coin):
                    audited.append(place)
            if audited:
                self._write(closed=False)
        return audited

    def settle(self, differs: bool) -> None:
        """Record the outcome of an audit: whether the answer at full depth differs."""
        with self._lock:
            self.ledger.settle(self.share, differs=differs)
            self._write(closed=False)

    def close(self) -> None:
        """Write the state for the next start."""
        with self._lock:
            self._write(closed=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON."""
        facts = {"level": self.level, "share": self.share, "answers": self.answers}
        return {**facts, "ledger": self.ledger.to_dict()}

    def _resume(self, path: Path, confidence: float) -> None:
        """Read the state of an earlier run, if it is of the same promise."""
        saved = read_sealed(path, _FORMAT, "ledger of a service")
        if saved.changed():
            raise CheckpointError(
                f"{path}: changed after the service wrote it, so its counts prove nothing. Restore "
                "it, or delete it to start anew."
            )
        state = saved.settings
        ledger = Ledger.from_dict(state["ledger"])
        if (state["level"], ledger.confidence) != (self.level, confidence):
            expected = f"the ledger of this promise, {self.level:g} with {confidence:g}"
            got = f"that of {state['level']:g} with {ledger.confidence:g}, in {path}"
            remedy = "Use one file for each promise, or delete this one to start anew."
            raise ArgumentError("path", expected=expected, got=got, remedy=remedy)
        # Pending audits are not settled: they may have been drawn with another share.
        if not state["closed"]:
            # Answers after the last write are not in the file; W does not need their number.
            ledger.missed_at_most = max(ledger.missed_at_most, ledger.worst)
        self.answers = state["answers"]
        self.ledger = ledger

    def _write(self, *, closed: bool) -> None:
        if self.path is not None:
            write_sealed(self.path, _FORMAT, {**self.to_dict(), "closed": closed})
