"""Throughput and latency of the served model with exits, against the plain one behind the same server.

Closed arrival: a number of clients, each of which asks again when it has its answer; what comes back a second is the
capacity. Open arrival: requests come by a Poisson process at a share of the capacity of the server that they go to.
Servers are measured in turn, a round each, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer

from benchmarks import backbones
from benchmarks.serving.connection import Connection, request_bytes
from benchmarks.serving.server import Running, running
from benchmarks.serving.subjects import EXITS, MIX
from benchmarks.speed.figures import figure
from ponder._utils.validation import check_real
from ponder.cost import WallClock

__all__ = ["Load", "measure"]

SECTION = "serving"
GOAL = 0.9
QUANTILES = (0.5, 0.95, 0.99)
_BATCH = 32
_SPECIAL = 2  # tokens that the tokenizer adds


@dataclass(frozen=True)
class Load:
    """How much is measured.

    Args:
        seconds: Seconds of a round.
        rounds: Rounds of each server, in turn.
        clients: Number of clients in closed arrival.
        lengths: Tokens of a text.
        texts: Texts of a request.
        shares: Shares of the capacity at which requests come in open arrival.
        seed: Seed of the texts and of the arrivals.
    """

    seconds: float = 5.0
    rounds: int = 3
    clients: int = 64
    lengths: tuple[int, ...] = (32, 128)
    texts: tuple[int, ...] = (1, 8)
    shares: tuple[float, ...] = (0.5, 0.8, 0.95)
    seed: int = 0

    def __post_init__(self) -> None:
        check_real("seconds", self.seconds, open_low=True)


def measure(load: Load, folder: Path, console: Console) -> list[dict[str, Any]]:
    """Put each server under load, and give the figures.

    Args:
        load: How much.
        folder: The folder for files of the servers.
        console: The console on which progress is told.
    """
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        bounds = {"max_batch": _BATCH, "max_waiting": 1 << 16, "max_texts": 512, "max_body": 1 << 24, "deadline": None}
        servers = {
            name: stack.enter_context(running(name, folder / f"{name}.json", **bounds))
            for name in ("plain", "stream", "window")
        }
        for length in load.lengths:
            for texts in load.texts:
                console.print(f"{length} tokens, {texts} texts a request …")
                requests = make_requests(length, texts, load.seed)
                found += asyncio.run(_case(servers, requests, load, length, texts))
    return found


def make_requests(length: int, texts: int, seed: int) -> list[bytes]:
    """Requests of texts of one length, in words that are a token each."""
    draw, tokenizer = random.Random(seed), AutoTokenizer.from_pretrained(backbones.resolve("minilm"))
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii() and len(word) > 2)
    made = []
    for _ in range(256):
        rows = [" ".join(draw.choices(words, k=length - _SPECIAL)) for _ in range(texts)]
        made.append(request_bytes("/predict", {"texts": rows}))
    return made


async def _case(
    servers: dict[str, Running], requests: Sequence[bytes], load: Load, length: int, texts: int
) -> list[dict[str, Any]]:
    case, saving = f"{length} tokens, {texts} texts a request", 6 / statistics.fmean(EXITS)
    rates: dict[str, list[float]] = {name: [] for name in servers}
    work: dict[str, list[float]] = {name: [] for name in servers}
    for server in servers.values():
        await closed(server.port, requests, load.clients, min(load.seconds, 2.0))
    for number in range(load.rounds):
        for name in list(servers)[:: 1 if number % 2 else -1]:
            busy, begun = servers[name].cpu_seconds(), time.perf_counter()
            rates[name].append(texts * await closed(servers[name].port, requests, load.clients, load.seconds))
            count = rates[name][-1] * (time.perf_counter() - begun)
            work[name].append((servers[name].cpu_seconds() - busy) / count)
    more: dict[str, Any] = {
        "mean_exit_step": statistics.fmean(EXITS),
        "mix": MIX,
        "clients": load.clients,
        "batch": _BATCH,
    }
    found = []
    for name in servers:
        own = f"{case}, {name}"
        found.append(figure(SECTION, own, "texts a second, closed arrival", WallClock.of(rates[name]), **more))
        found.append(figure(SECTION, own, "CPU seconds of the server a text", WallClock.of(work[name]), **more))
        if name != "plain":
            ratios = [one / plain / saving for one, plain in zip(rates[name], rates["plain"], strict=True)]
            told = "throughput ÷ (saving in steps × plain)"
            found.append(figure(SECTION, own, told, WallClock.of(ratios), at_least=GOAL, **more))
            ratios = [plain / one / saving for one, plain in zip(work[name], work["plain"], strict=True)]
            told = "texts a CPU second ÷ (saving in steps × plain)"
            found.append(figure(SECTION, own, told, WallClock.of(ratios), **more))
    draw = random.Random(load.seed)
    for share in load.shares:
        for name, server in servers.items():
            rate = share * statistics.median(rates[name]) / texts
            waits = await opened(server.port, requests, rate, load.seconds, draw)
            for q in QUANTILES:
                told = f"latency at {q:.0%}, seconds, open arrival at {share:.0%} of its capacity"
                value = float(torch.tensor(waits).quantile(q))
                found.append(figure(SECTION, f"{case}, {name}", told, value, requests_a_second=rate, count=len(waits)))
    return found


async def closed(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> float:
    """Requests a second that clients get answered who each ask again at once."""
    end = time.perf_counter() + seconds

    async def client(place: int) -> int:
        connection, count = await Connection.open(port), 0
        while time.perf_counter() < end:
            await _answered(connection, requests[(place + clients * count) % len(requests)])
            count += 1
        await connection.close()
        return count

    begun = time.perf_counter()
    counts = await asyncio.gather(*(client(place) for place in range(clients)))
    return sum(counts) / (time.perf_counter() - begun)


async def opened(port: int, requests: Sequence[bytes], rate: float, seconds: float, draw: random.Random) -> list[float]:
    """Seconds from a request's arrival, whether a connection is free then or not, to its answer."""
    free: list[Connection] = []

    async def one(place: int, due: float) -> float:
        connection = free.pop() if free else await Connection.open(port)
        await _answered(connection, requests[place % len(requests)])
        free.append(connection)
        return time.perf_counter() - due

    start, due, tasks = time.perf_counter(), 0.0, list[asyncio.Task[float]]()
    while (due := due + draw.expovariate(rate)) < seconds or not tasks:  # one at least
        await asyncio.sleep(max(start + due - time.perf_counter(), 0.0))
        tasks.append(asyncio.create_task(one(len(tasks), start + due)))
    waits = await asyncio.gather(*tasks)
    for connection in free:
        await connection.close()
    return list(waits)


async def _answered(connection: Connection, request: bytes) -> None:
    status, body = await connection.ask(request)
    if status != 200:
        raise ConnectionError(f"the server answered {status}: {body[:200]!r}")
