"""The state of `Live` in one SQLite file: answers by content, rows, ledger and claims.

All that a decision reads and writes is one transaction, and it is on the disk before the reference
is called: the coin, the pending audit and the claim on the text. The answer is written in the
transaction that settles it. Until then it is a line of the journal of its process, which waits for
no lock: what was paid is kept as soon as the call returns.

A process that is killed leaves pending audits, which count as caught; claims, which the next
process takes over; and its journal, whose answers are then written first. Each process holds a lock
file while it lives.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import uuid
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ponder._utils.checks import library
from ponder.errors import CheckpointError
from ponder.statistics.ledger import Ledger

__all__ = ["Account", "Known", "Lesson", "Row", "Store"]

_FORMAT = "ponder-live-4"
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, text TEXT, label TEXT, owner TEXT, probability REAL, arrived INTEGER
);
CREATE INDEX IF NOT EXISTS arrived ON answers (arrived);
CREATE TABLE IF NOT EXISTS rows (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE, key TEXT, cheap TEXT, doubt REAL, probability REAL,
    audited INTEGER, differs INTEGER
);
CREATE INDEX IF NOT EXISTS pending ON rows (key) WHERE audited AND differs IS NULL;
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT);
"""
# Answers are numbered as they are written: the first of them taught the present cheap model, also
# where rows were asked in another order.
_ANSWERED = (
    "UPDATE answers SET label = ?, owner = NULL, "
    "arrived = (SELECT IFNULL(MAX(arrived), 0) + 1 FROM answers)"
)


@dataclass
class Account:
    """The costs of a stream and the state of its promise.

    Attributes:
        ledger: The bound on answers that differ.
        answers: Answers given.
        asked: Calls of the reference, one a text.
    """

    ledger: Ledger
    answers: int = 0
    asked: int = 0

    def to_json(self) -> str:
        """Return the account as JSON."""
        # Not `asdict`, which copies every list deeply: this is written with each decision.
        return json.dumps({**vars(self), "ledger": self.ledger.to_dict()})

    @classmethod
    def from_json(cls, text: str) -> Account:
        """Return the account that `to_json` wrote."""
        state = json.loads(text)
        return cls(**{**state, "ledger": Ledger.from_dict(state["ledger"])})


@dataclass(frozen=True)
class Row:
    """A row that the cheap model answered, or would have.

    Args:
        key: The content of the row.
        cheap: The cheap model's label; None without a cheap model, and for a row that is picked for
            its doubt.
        doubt: 1 − its confidence.
        probability: The probability with which the reference is called.
        audited: Whether it is called.
        differs: Whether its answer is another; None if that is not known.
        number: The row's number in the file, 0 before it is written.
    """

    key: str
    cheap: str | None
    doubt: float
    probability: float
    audited: bool
    differs: bool | None = None
    number: int = 0


@dataclass(frozen=True)
class Known:
    """What is known about a content: the reference's label, or the owner of the claim to ask."""

    label: Any
    owner: str | None


@dataclass(frozen=True)
class Lesson:
    """A row that the reference has answered.

    Args:
        row: The row.
        label: The reference's label.
        probability: The probability with which it was asked; 0 if it was picked for its doubt.
    """

    row: Any
    label: Any
    probability: float

    @property
    def picked(self) -> bool:
        """Whether it was picked for its doubt from a batch, and did not come by chance."""
        return self.probability == 0.0

    @property
    def name(self) -> str:
        """The label as the name of a class."""
        return str(self.label)


class Store:
    """The file; without a path it is in memory. Any thread may use it.

    Args:
        path: The SQLite file.
        fresh: The account of a new file.

    Raises:
        CheckpointError: The file is of something else, or its folder does not exist.
    """

    def __init__(self, path: str | Path | None, fresh: Account) -> None:
        self._path = None if path is None else Path(path).absolute()
        self.owner = uuid.uuid4().hex
        self._lock = threading.RLock()
        self._alive: Any = None  # the lock file, once something was claimed
        self._journal: int | None = None  # open from then on
        self._in_journal = 0  # answers there that are not in the database
        self._journal_lock = threading.Lock()
        place = ":memory:" if self._path is None else str(self._path)
        try:
            self._data = sqlite3.connect(
                place, timeout=60, isolation_level=None, check_same_thread=False
            )
            # For a store that nobody closed: from Python 3.13 on an open connection warns when it
            # goes.
            weakref.finalize(self, self._data.close)
            self._data.execute("PRAGMA journal_mode=WAL")
            self._data.execute("PRAGMA synchronous=FULL")
            with self.transaction():
                for statement in _TABLES.split(";"):
                    self._data.execute(statement)
                made = self._state("format")
                if made is None:
                    self._write_state("format", _FORMAT)
                    self._write_state("account", fresh.to_json())
        except sqlite3.DatabaseError as error:
            raise CheckpointError(f"{path}: no file of ponder.Live ({error}).") from error
        if made not in (None, _FORMAT):
            raise CheckpointError(f"{path}: of another version, {made}.")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Read and write as one act that no other thread or process comes between."""
        with self._lock:
            self._data.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._data.execute("ROLLBACK")
                raise
            self._data.execute("COMMIT")

    def account(self) -> Account:
        """Return the account."""
        with self._lock:
            return Account.from_json(str(self._state("account")))

    def write_account(self, account: Account) -> None:
        """Write the account, inside a transaction."""
        self._write_state("account", account.to_json())

    def answer(self, key: str) -> Known | None:
        """Return the reference's answer to a content, or the process that asks, if any."""
        with self._lock:
            query = "SELECT label, owner FROM answers WHERE key = ?"
            found = self._data.execute(query, (key,)).fetchone()
        if found is None:
            return None
        label, owner = found
        return Known(None if label is None else json.loads(label), owner)

    def claim(self, key: str, row: str, probability: float) -> None:
        """Note, inside a transaction, that this process asks about a row.

        Args:
            key: The content of the row.
            row: The row as JSON.
            probability: The probability with which the reference is called; 0 for a row that is
                picked for its doubt.
        """
        self._hold()
        command = "INSERT OR REPLACE INTO answers VALUES (?, ?, NULL, ?, ?, NULL)"
        self._data.execute(command, (key, row, self.owner, probability))

    def release_now(self, key: str) -> None:
        """Give up a claim, inside a transaction."""
        self._data.execute("DELETE FROM answers WHERE key = ? AND label IS NULL", (key,))

    def release(self, keys: Sequence[str]) -> None:
        """Give up claims without an answer."""
        with self.transaction():
            command = "DELETE FROM answers WHERE key = ? AND label IS NULL AND owner = ?"
            self._data.executemany(command, [(key, self.owner) for key in keys])

    def take_over(self, owner: str | None) -> bool:
        """Write the answers that a dead process left in its journal, and release its claims.

        Returns:
            Whether it is gone.
        """
        if owner == self.owner or self._path is None or owner is None:
            return False
        filelock = library("filelock", "several processes on one file", "cascade")
        lock = filelock.FileLock(self._file_of(owner, "lock"), thread_local=False)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            return False
        self._write_journal(owner)
        lock.release()
        self._file_of(owner, "lock").unlink(missing_ok=True)
        return True

    def keep(self, key: str, label: Any) -> None:
        """Keep an answer in the journal, at once and on any thread.

        It survives the end of the process; after a loss of power it may be asked again.
        """
        if self._journal is not None:
            with self._journal_lock:
                os.write(self._journal, f"{json.dumps([key, label])}\n".encode())
                self._in_journal += 1

    def write_answer(self, key: str, label: Any) -> None:
        """Write an answer, inside the transaction that settles it."""
        self._data.execute(f"{_ANSWERED} WHERE key = ?", (json.dumps(label), key))

    def shorten_journal(self, written: int) -> None:
        """Note that a transaction wrote some answers; a journal without others is emptied."""
        if self._journal is not None:
            with self._journal_lock:
                self._in_journal -= written
                if self._in_journal == 0:
                    os.ftruncate(self._journal, 0)

    def waiting(self, key: str) -> list[Row]:
        """Return the rows that wait for the reference's answer to a content."""
        query = "SELECT * FROM rows WHERE key = ? AND audited AND differs IS NULL"
        with self._lock:
            return [_row(found) for found in self._data.execute(query, (key,)).fetchall()]

    def row(self, identity: str) -> Row | None:
        """Return the row of an identity, if it was decided."""
        with self._lock:
            query = "SELECT * FROM rows WHERE id = ?"
            found = self._data.execute(query, (identity,)).fetchone()
            return None if found is None else _row(found)

    def write_row(self, row: Row, identity: str | None) -> None:
        """Keep a decided row, inside a transaction."""
        values = (row.key, row.cheap, row.doubt, row.probability, row.audited, row.differs)
        self._data.execute(
            "INSERT INTO rows VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", (identity, *values)
        )

    def settle(self, row: Row, differs: bool) -> None:
        """Keep the outcome of a row, inside a transaction."""
        command = "UPDATE rows SET differs = ? WHERE number = ?"
        self._data.execute(command, (differs, row.number))

    def outcomes(self, most: int) -> list[Row]:
        """Return the latest rows about which the reference was asked, the oldest first."""
        with self._lock:
            query = (
                "SELECT * FROM rows WHERE differs IS NOT NULL AND cheap IS NOT NULL "
                "ORDER BY number DESC LIMIT ?"
            )
            return [_row(found) for found in self._data.execute(query, (most,)).fetchall()][::-1]

    def count_answers(self) -> int:
        """Return how many rows the reference has answered."""
        with self._lock:
            query = "SELECT COUNT(*) FROM answers WHERE label IS NOT NULL"
            return int(self._data.execute(query).fetchone()[0])

    def lessons(self) -> list[Lesson]:
        """Return the rows that the reference answered, the oldest first."""
        with self._lock:
            query = (
                "SELECT text, label, probability FROM answers WHERE label IS NOT NULL "
                "ORDER BY arrived"
            )
            found = self._data.execute(query).fetchall()
        return [Lesson(json.loads(row), json.loads(label), share) for row, label, share in found]

    def taught(self) -> int:
        """Return how many of the lessons taught the present cheap model."""
        with self._lock:
            return int(self._state("taught") or 0)

    def write_taught(self, count: int) -> None:
        """Keep how many lessons taught the cheap model, from which the next process goes on."""
        with self.transaction():
            self._write_state("taught", str(count))

    def asked_by_class(self) -> dict[str, int]:
        """Return how many texts of each class the reference answered, the most first."""
        with self._lock:
            query = (
                "SELECT label, COUNT(*) FROM answers WHERE label IS NOT NULL "
                "GROUP BY label ORDER BY 2 DESC"
            )
            found = self._data.execute(query).fetchall()
        return {str(json.loads(label)): count for label, count in found}

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._alive is not None and self._path is not None:
                assert self._journal is not None
                os.close(self._journal)
                self._journal = None
                self._write_journal(self.owner)
                self._alive.release()
                self._file_of(self.owner, "lock").unlink(missing_ok=True)
                self._alive = None
            self._data.close()

    def _hold(self) -> None:
        """Take the lock that shows other processes that this one lives, and open the journal."""
        if self._alive is None and self._path is not None:
            filelock = library("filelock", "several processes on one file", "cascade")
            lock = filelock.FileLock(self._file_of(self.owner, "lock"), thread_local=False)
            lock.acquire()
            self._alive = lock
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._journal = os.open(self._file_of(self.owner, "journal"), flags, 0o600)

    def _write_journal(self, owner: str) -> None:
        """Write a journal's answers that the database lacks, and release its process's claims."""
        journal = self._file_of(owner, "journal")
        with self.transaction():
            command = f"{_ANSWERED} WHERE key = ? AND owner = ?"
            for key, label in _journal(journal):
                self._data.execute(command, (json.dumps(label), key, owner))
            command = "DELETE FROM answers WHERE label IS NULL AND owner = ?"
            self._data.execute(command, (owner,))
        # Only now, when the answers are on the disk: this process may be killed too.
        journal.unlink(missing_ok=True)

    def _file_of(self, owner: str, kind: str) -> Path:
        assert self._path is not None
        return self._path.with_name(f"{self._path.name}.{owner}.{kind}")

    def _state(self, name: str) -> str | None:
        found = self._data.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])

    def _write_state(self, name: str, value: str) -> None:
        self._data.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))


def _journal(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield keys and labels; the last line may be cut."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for line in lines:
        key, label = json.loads(line)
        yield key, label


def _row(found: Sequence[Any]) -> Row:
    number, _, key, cheap, doubt, probability, audited, differs = found
    known = None if differs is None else bool(differs)
    return Row(key, cheap, doubt, probability, bool(audited), known, number)
