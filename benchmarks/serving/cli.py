"""The command line, `python -m benchmarks.serving`."""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.command_line import MAX_SEED, check_free, check_writable, run_app
from benchmarks.environment import environment
from benchmarks.serving.load import Load, measure
from benchmarks.serving.soak import LIMITS, faults, run
from benchmarks.speed.page import COLUMNS, cells
from benchmarks.terminal import print_table
from ponder._utils.files import write_json
from ponder.errors import ArgumentError, PonderError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help="A service under load.")

_MOST = 512

Out = Annotated[Path, typer.Option(help="Folder of results.")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of texts, arrivals and clients.")]


@app.command()
def load(
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds of a round.")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds of each server, in turn.")] = 3,
    clients: Annotated[int, typer.Option(min=1, max=1024, help="Clients in closed arrival.")] = 64,
    tokens: Annotated[str, typer.Option(help="Tokens of a text, with commas.")] = "32,128",
    texts: Annotated[str, typer.Option(help="Texts of a request, with commas.")] = "1,8",
    seed: Seed = 0,
    out: Out = Path("runs/serving"),
) -> None:
    """Throughput and latency with exits, against the plain model behind the same server."""
    chosen = Load(seconds, rounds, clients, _numbers("tokens", tokens), _numbers("texts", texts), seed=seed)
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(chosen).items()}
    check_free(out / "load.json", {"settings": settings})
    check_writable(out)
    console, start = Console(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(chosen, Path(folder), console)
    told = {
        "section": "serving",
        "settings": settings,
        "figures": figures,
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json(out / "load.json", {**told, "environment": environment(torch.device("cpu"))})
    print_table(COLUMNS, [cells(figure) for figure in figures], grouped=True)


@app.command()
def soak(
    requests: Annotated[int, typer.Option(min=1, max=10**7, help="Requests that are sent, at least.")] = 50_000,
    seed: Seed = 0,
    out: Out = Path("runs/serving"),
) -> None:
    """Clients that leave, are killed, or find the queue full: is anything lost, or answered twice?"""
    settings = {"requests": requests, "seed": seed}
    check_free(out / "soak.json", {"settings": settings})
    check_writable(out)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        written, notes, killed = asyncio.run(run(requests, Path(folder), seed))
    found = faults(written, notes)
    told = {
        "sent": len(notes.sent),
        "arrived": written["arrived"],
        "answers_received": len(notes.answers),
        "clients_that_left": len(notes.left),
        "client_processes_killed": killed,
        "connections_refused_or_broken": len(notes.broken),
        "statuses": written["statuses"],
        "outcomes": written["outcomes"],
        "unanswered_since_the_client_left": len(written["unanswered"]),
        "limits": LIMITS,
        "faults": found,
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json(out / "soak.json", {"settings": settings, **told, "environment": environment(torch.device("cpu"))})
    print_table(("what", "count"), [(name.replace("_", " "), str(count)) for name, count in told.items()])
    if found:
        raise PonderError("; ".join(found))


def _numbers(option: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= _MOST for part in parts):
        expected = f"whole numbers from 1 to {_MOST}, with commas"
        raise ArgumentError(option, expected=expected, got=text, remedy=f"Pass --{option} 8,16, say.")
    return tuple(int(part) for part in parts)


def main() -> None:
    """Run the command line."""
    run_app(app)
