"""Nothing lost, nothing answered twice: many requests, of which clients leave, are killed, or find the queue full.

Three books are kept and held against one another: what clients sent and got, what reached the application and what it
answered (`Ledger`), and what the service counted. `in_process` has no sockets and no processes, for the tests; `run`
has a server, clients that are killed in the middle, and a server that is told to stop while they still ask.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.serving.asking import Notes, asked, read_notes
from benchmarks.serving.ledger import NUMBER, Ledger
from benchmarks.serving.server import running
from benchmarks.serving.subjects import tiny
from ponder.serving import Limits, Service, create_app

__all__ = ["LIMITS", "faults", "in_process", "run"]

LIMITS: dict[str, Any] = {"max_waiting": 24, "max_texts": 8, "max_batch": 8}
_STATUSES = {"answered": 200, "overloaded": 429, "stopping": 503, "timed_out": 504}
"""What the service counts for a status; it may count one more where the client left while the answer was written."""
_CLIENTS, _EACH, _KILLED = 6, 1000, 0.4
_NOTES = "notes-*.jsonl"


async def in_process(requests: int, seed: int = 0, at_once: int = 48) -> tuple[dict[str, Any], Notes]:
    """The soak without sockets: tasks that are cancelled at any point take the place of clients that are killed.

    Args:
        requests: How many.
        seed: Seed of the draw that says when each client leaves.
        at_once: Requests that are asked at a time.

    Returns:
        What the application wrote down, and what its clients did.
    """
    app = create_app(tiny, Limits(**LIMITS))
    ledger, notes, draw = Ledger(app), Notes(), random.Random(seed)
    numbers = iter(range(requests))
    transport = httpx.ASGITransport(ledger, raise_app_exceptions=False)

    async def client(http: httpx.AsyncClient) -> None:
        for number in numbers:
            request = asked(number)
            notes.sent.add(number)
            asking = asyncio.create_task(
                http.post("/predict", json=request.body, headers={NUMBER.decode(): str(number)})
            )
            for _ in range(draw.randrange(40) if request.leaves else 0):
                await asyncio.sleep(0)  # let it run on for some turns of the loop
            if request.leaves and not asking.done():
                asking.cancel()
                notes.left.add(number)
            try:
                told = await asking
            except asyncio.CancelledError:
                continue
            notes.answered(number, told.status_code, told.json() if told.status_code == 200 else None)

    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service", timeout=None) as http,
    ):
        await asyncio.gather(*(client(http) for _ in range(at_once)))
    service: Service = app.state.service
    return {**ledger.to_dict(), "outcomes": service.metrics.outcomes(), "waiting": service.waiting}, notes


async def run(requests: int, folder: Path, seed: int = 0) -> tuple[dict[str, Any], Notes, int]:
    """The soak with a server and clients that are killed; the server is stopped while clients still ask.

    Args:
        requests: How many are sent at least.
        folder: The folder for the books of server and clients.
        seed: Seed of the draw that says which clients are killed, and when.

    Returns:
        What the application wrote down, what its clients did, and how many of these were killed.
    """
    draw, killed, begun = random.Random(seed), 0, 0
    with running("tiny", folder / "ledger.json", **LIMITS) as server:

        async def clients(last: bool) -> None:
            nonlocal killed, begun
            while last or _sent(folder, _NOTES) < requests:
                first, begun = begun, begun + _EACH
                words = ["-m", "benchmarks.serving.client", str(server.port), str(first), str(_EACH)]
                path = folder / f"notes-{first}.jsonl"
                process = await asyncio.create_subprocess_exec(sys.executable, *words, str(path))
                if not last and draw.random() < _KILLED:
                    await _asking(path.parent, path.name, draw.randrange(20, 300))
                    process.kill()
                    killed += 1
                await process.wait()
                if last:
                    return

        await asyncio.gather(*(clients(last=False) for _ in range(_CLIENTS)))
        before = _sent(folder, _NOTES)
        asking = [asyncio.create_task(clients(last=True)) for _ in range(_CLIENTS)]
        await _asking(folder, _NOTES, before + 100)
        written = await asyncio.to_thread(server.stop)
        await asyncio.gather(*asking)
    lines = [line for path in sorted(folder.glob(_NOTES)) for line in path.open()]
    return written, read_notes(lines), killed


def faults(written: Mapping[str, Any], notes: Notes) -> list[str]:
    """What does not hold; nothing where every request was answered once, rightly, or dropped because its client left.

    Args:
        written: What the application wrote down.
        notes: What its clients wrote down.
    """
    arrived, unanswered = set(written["arrived_numbers"]), set(written["unanswered"])
    expected = _expected()
    found = [
        ("requests that reached the application twice", written["arrived_twice"]),
        ("requests that the application answered twice", written["answered_twice"]),
        ("requests that their client got answered twice", notes.doubled),
        ("requests that arrived, whose client waited, and that were not answered", notes.broken & arrived),
        ("answers that nobody wrote down", unanswered & notes.answers.keys()),
        ("answers to requests that were not sent", notes.answers.keys() - notes.sent),
        ("statuses that should not be", [s for s in written["statuses"] if int(s) not in {200, 429, 499, 503, 504}]),
        ("wrong answers", [n for n, (s, body) in notes.answers.items() if s == 200 and _wrong(n, body, expected)]),
        ("texts that still wait", range(written["waiting"])),
    ]
    counted, given = written["outcomes"], written["statuses"]
    surplus = {outcome: counted[outcome] - given.get(str(status), 0) for outcome, status in _STATUSES.items()}
    if min(surplus.values()) < 0 or sum(surplus.values()) > len(unanswered) or sum(counted.values()) > len(arrived):
        found.append((f"counts of the service, {counted}, that are not the application's, {given}", [0]))
    return [f"{len(list(where))} {what}: {sorted(where)[:5]}" for what, where in found if len(list(where))]


async def _asking(folder: Path, names: str, count: int) -> None:
    """Until clients have sent so many requests."""
    while _sent(folder, names) < count:
        await asyncio.sleep(0.02)


def _sent(folder: Path, names: str) -> int:
    """How many requests clients have sent, by their notes."""
    return sum(path.read_bytes().count(b'["sent"') for path in folder.glob(names))


def _expected() -> Any:
    """What the model says of a text, by itself."""
    model = tiny()
    batcher = model.start(Limits(**LIMITS))
    cache: dict[str, tuple[str, int]] = {}

    def of(text: str) -> tuple[str, int]:
        if text not in cache:
            output = batcher.submit(model.tokenize([text]).examples[0]).result()
            cache[text] = model.labels[int(torch.argmax(output.output))], output.exit_step
        return cache[text]

    return of


def _wrong(number: int, body: Any, expected: Any) -> bool:
    """Whether an answer is not that of its own texts; one by the deadline may have come from an earlier step."""
    request = asked(number).body
    texts = request.get("texts") or [request["text"]]
    given = [None if a["overdue"] else (a["label"], a["exit_step"]) for a in body["answers"]]
    return len(given) != len(texts) or any(
        one is not None and one != expected(text) for one, text in zip(given, texts, strict=True)
    )
