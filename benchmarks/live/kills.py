"""Processes on one file of `ponder.Live` that are killed at random moments, and what is then on the disk.

Several processes label the same rows. A line is written before and after each call, and another when its answer is
kept. A process is killed again and again, and started anew. After each kill the rows on the disk are replayed through a
fresh ledger, which must not have a larger bound than the one on the disk. In the end every row has one answer, and no
text was asked about twice, unless a process was killed before the answer was kept: during the call, or within the
moment between its return and the write of the journal.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ponder.cascade.asking import Asking, Reply
from ponder.cascade.live import Live
from ponder.cascade.live_store import Account
from ponder.statistics.ledger import Ledger

__all__ = ["Faults", "trial"]

LEVEL = 0.1
CONCURRENCY = 4
SECONDS = 0.002


@dataclass
class Faults:
    """What a trial counted.

    Attributes:
        kills: Processes that were killed.
        rows: Rows that were labelled.
        lost: Rows without their answer in the end.
        paid_twice: Calls about a text whose answer was kept, or that a process asked about that was not killed.
        under_way: Calls that were under way in a killed process, and were made again.
        unkept: Calls that had returned in a killed process, but whose answer was not kept yet, and were made again.
        understated: Kills after which the bound on the disk was below that of the rows on the disk.
    """

    kills: int = 0
    rows: int = 0
    lost: int = 0
    paid_twice: int = 0
    under_way: int = 0
    unkept: int = 0
    understated: int = 0


class _Watched(Live):
    """Writes a line when an answer was kept."""

    log = -1

    def _arrived(self, reply: Reply) -> None:
        super()._arrived(reply)
        os.write(self.log, f"kept {os.getpid()} {reply.row}\n".encode())


class _Cheap:
    """Right on even numbers; on odd ones right in nine of ten."""

    classes = ("even", "odd")

    def predict_proba(self, rows: Sequence[int]) -> Any:
        even = [row % 2 == 0 or row % 20 == 7 for row in rows]
        return np.array([[0.98, 0.02] if side else [0.02, 0.98] for side in even])


def trial(folder: Path, kills: int, processes: int, rows: int, seed: int) -> Iterator[Faults]:
    """Kill processes until there were enough kills, and yield the counts so far after each file.

    A file is finished before the next one is begun.
    """
    draw = random.Random(seed)
    faults = Faults()
    file = 0
    while faults.kills < kills:
        file += 1
        _one_file(folder / f"{file}.db", kills, processes, rows, draw, faults)
        yield replace(faults)


def _one_file(
    path: Path, kills: int, processes: int, rows: int, draw: random.Random, faults: Faults
) -> None:
    log = path.with_suffix(".log")
    killed = set[int]()
    running = [_start(path, rows) for _ in range(processes)]
    while running:
        _wait_for_calls(log, running, draw.randrange(1, 40))
        if faults.kills < kills:
            victim = running.pop(draw.randrange(len(running)))
            if victim.poll() is None:
                victim.kill()
                killed.add(victim.pid)
                faults.kills += 1
                victim.wait()
                faults.understated += _understates(path)
                running.append(_start(path, rows))
        running = [process for process in running if process.poll() is None]
    subprocess.run(_command(path, rows), check=True)
    faults.rows += rows
    faults.lost += _lost(path, rows)
    _count_calls(log, killed, faults)


def _wait_for_calls(log: Path, running: Sequence[subprocess.Popen[bytes]], more: int) -> None:
    """Wait until the log has grown by some lines, or nobody is left to write."""
    size = log.stat().st_size if log.exists() else 0
    while all(process.poll() is None for process in running):
        if log.exists() and log.stat().st_size > size + 20 * more:
            return
        time.sleep(0.001)


def _command(path: Path, rows: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.live.kills", str(path), str(rows)]


def _start(path: Path, rows: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(_command(path, rows))


def work(path: Path, rows: int) -> None:
    """Label rows, as one of the processes."""
    log = os.open(path.with_suffix(".log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def ask(asked: Sequence[int]) -> list[str]:
        (row,) = asked
        os.write(log, f"begin {os.getpid()} {row}\n".encode())
        time.sleep(SECONDS)
        os.write(log, f"end {os.getpid()} {row}\n".encode())
        return [_label_of(row)]

    asking = Asking(concurrency=CONCURRENCY)
    with _Watched(ask, LEVEL, path=path, cheap=_Cheap(), asking=asking) as live:
        live.log = log
        found = live.answer(list(range(rows)), ids=range(rows))
    assert not found.errors, found.errors


def _understates(path: Path) -> bool:
    """Return whether the bound on the disk is below that of a fresh ledger to which the rows are given."""
    data = sqlite3.connect(path, isolation_level=None)
    try:
        # Another process goes on writing: both reads have to be of one moment.
        data.execute("BEGIN")
        found = data.execute("SELECT value FROM state WHERE name = 'account'").fetchone()
        query = (
            "SELECT probability, audited, differs FROM rows WHERE probability < 1 ORDER BY number"
        )
        rows = data.execute(query).fetchall()
    except sqlite3.OperationalError:  # killed before there was a table
        return False
    finally:
        data.close()
    if found is None:
        return bool(rows)
    kept = Account.from_json(found[0]).ledger
    replayed = Ledger()
    for probability, audited, differs in rows:
        replayed.answer(probability, audited=bool(audited))
        if audited and differs is not None:
            replayed.settle(probability, differs=bool(differs))
    counts = (kept.unaudited, kept.audits, kept.pending, kept.caught)
    same = counts == (replayed.unaudited, replayed.audits, replayed.pending, replayed.caught)
    return not same or kept.bound < replayed.bound


def _lost(path: Path, rows: int) -> int:
    """Return how many rows have no answer, or one that is neither the cheap model's nor the reference's."""
    data = sqlite3.connect(path)
    query = "SELECT rows.id, cheap, audited, label FROM rows LEFT JOIN answers ON rows.key = answers.key"
    answered = 0
    for name, cheap, audited, label in data.execute(query):
        if audited:
            answered += label == f'"{_label_of(int(name))}"'
        else:
            answered += cheap is not None
    data.close()
    return rows - answered


def _label_of(row: int) -> str:
    return "odd" if row % 2 else "even"


def _count_calls(log: Path, killed: set[int], faults: Faults) -> None:
    begun = defaultdict[str, list[int]](list)
    seen = set[tuple[str, int, str]]()
    for line in log.read_text().splitlines():
        event, number, row = line.split()
        seen.add((event, int(number), row))
        if event == "begin":
            begun[row].append(int(number))
    for row, processes in begun.items():
        for process in processes[:-1]:
            if process not in killed or ("kept", process, row) in seen:
                faults.paid_twice += 1
            elif ("end", process, row) in seen:
                faults.unkept += 1
            else:
                faults.under_way += 1


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
