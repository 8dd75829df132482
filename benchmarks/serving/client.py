"""A client of the soak in a process of its own, to be killed: `python -m benchmarks.serving.client`."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.serving.asking import asked
from benchmarks.serving.connection import Connection, request_bytes

_CONNECTIONS = 12


async def _ask(port: int, numbers: Iterator[int], notes: BinaryIO) -> None:
    """Ask one request after the other; every line of the notes is written before what it tells can be lost."""
    connection: Connection | None = None

    def note(*told: Any) -> None:
        notes.write(json.dumps(told).encode() + b"\n")

    for number in numbers:
        request = asked(number)
        try:
            connection = connection or await Connection.open(port)
            note("sent", number)
            connection.send(request_bytes("/predict", request.body, {"x-number": str(number)}))
            if request.leaves:
                await asyncio.sleep((number % 8) / 1000)
                connection.abort()
                connection = None
                note("left", number)
                continue
            status, body = await connection.answer()
            note("answered", number, status, json.loads(body) if status == 200 else None)
        except OSError:
            connection = None
            note("broken", number)
    if connection is not None:
        await connection.close()


async def _run(port: int, first: int, count: int, path: Path) -> None:
    numbers = iter(range(first, first + count))
    with path.open("ab", buffering=0) as notes:
        await asyncio.gather(*(_ask(port, numbers, notes) for _ in range(_CONNECTIONS)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("port", "first", "count"):
        parser.add_argument(name, type=int)
    parser.add_argument("notes", type=Path)
    given = parser.parse_args()
    asyncio.run(_run(given.port, given.first, given.count, given.notes))
