"""`python -m benchmarks.live`: `run` measures streams, `redraws` counts broken promises on synthetic ones.

`kills` kills processes that share a file, and `overhead` measures what `Live` adds to a call. `batches` compares a
certificate about the rows of a batch with one about rows like them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.command_line import run_app
from benchmarks.environment import environment
from benchmarks.files import read_json, write_json
from benchmarks.live import streams
from benchmarks.live.batches import batches
from benchmarks.live.cheap import FittedLinear
from benchmarks.live.kills import trial
from benchmarks.live.measuring import Trial
from benchmarks.live.overhead import overhead
from benchmarks.live.redraws import SETTINGS, redrawn

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
ROWS = 12_000
_CACHE = Path("models/live")


@app.command("run")
def run_command(
    text_dir: Annotated[Path, typer.Option(envvar="TEXT_DIR", help="Folder of the tasks.")],
    glue_dir: Annotated[Path, typer.Option(envvar="GLUE_DIR", help="Folder of GLUE.")],
    seed: Annotated[list[int], typer.Option(min=0, help="Seeds of the orders.")],
    coin: Annotated[list[int], typer.Option(min=0, help="Coins of each order.")],
    setting: Annotated[list[str], typer.Option(help="Settings; all by default.")] = [],  # noqa: B006
    batch: Annotated[bool, typer.Option(help="Answer the rows as a batch.")] = False,
    cache: Annotated[Path, typer.Option(help="Folder of embeddings.")] = _CACHE,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/live"),
) -> None:
    """Measure streams as `rule.md` says: coin by coin, in each seed by seed.

    Each coin of a stream is written as soon as it is done, and left out if it is there.
    """
    for one in coin:
        for task, chosen, each in _jobs(setting or list(streams.SETTINGS), seed):
            parts = [task, chosen.replace(" ", "-")] + ["batch"] * batch + [f"s{each}.json"]
            file = out / "-".join(parts)
            facts = {"task": task, "setting": chosen, "seed": each, "batch": batch}
            found: dict[str, Any] = read_json(file) if file.exists() else {**facts, "runs": []}
            if any(run["coin"] == one for run in found["runs"]):
                continue
            corpus = streams.read(task, text_dir, glue_dir, cache)
            trial = Trial(corpus, chosen, FittedLinear, min(ROWS, len(corpus.texts)), each)
            start = time.process_time()
            ways = list(trial.batch_ways(one) if batch else trial.stream_ways(one))
            seconds = round(time.process_time() - start, 1)
            run = {"coin": one, "ways": ways, "environment": _environment()}
            found["runs"].append(run)
            write_json(file, {**found, "rows": trial.rows})
            typer.echo(f"{file.name} coin {one}: {seconds} s, {_first_ways(ways)}")


def _jobs(settings: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, str, int]]:
    """Yield task, setting and seed of each stream, one seed after the other."""
    for seed in seeds:
        for setting in settings:
            for task in streams.SETTINGS[setting]:
                yield task, setting, seed


@app.command("batches")
def batches_command(
    text_dir: Annotated[Path, typer.Option(envvar="TEXT_DIR", help="Folder of the tasks.")],
    glue_dir: Annotated[Path, typer.Option(envvar="GLUE_DIR", help="Folder of GLUE.")],
    task: Annotated[str, typer.Option(help="The task.")] = "banking77",
    draws: Annotated[int, typer.Option(min=1)] = 20,
    cache: Annotated[Path, typer.Option(help="Folder of embeddings.")] = Path("models/live"),
    out: Annotated[Path, typer.Option(help="The file of results.")] = Path(
        "runs/live/batches.json"
    ),
) -> None:
    """Measure what `certify --finite` saves on a batch, of which some rows are drawn and asked."""
    corpus = streams.read(task, text_dir, glue_dir, cache)
    order = streams.order_of(corpus, "no drift", ROWS, 0)
    model = FittedLinear(corpus, order[:1200].tolist(), corpus.labels[order[:1200]].tolist())
    batch = order[1200:]
    shares = model.predict_proba(batch.tolist())
    answers = np.array(model.classes)[shares.argmax(1)]
    found = list(batches(answers, shares.max(1), corpus.labels[batch], draws))
    facts = {"task": task, "rows": len(batch), "taught": 1200, "draws": draws}
    write_json(out, {**facts, "ways": found, "environment": _environment()})
    for row in found:
        typer.echo(str(row))


@app.command("redraws")
def redraws_command(
    streams_of_each: Annotated[int, typer.Option("--streams", min=1)] = 1000,
    rows: Annotated[int, typer.Option(min=100)] = 800,
    out: Annotated[Path, typer.Option(help="The file of results.")] = Path(
        "runs/live/redraws.json"
    ),
) -> None:
    """Count broken promises of `Live`'s rule and ledger on synthetic streams of each setting."""
    found = list[dict[str, Any]]()
    for name in SETTINGS:
        found.append(redrawn(name, streams_of_each, rows))
        typer.echo(str(found[-1]))
        write_json(out, {"rows": rows, "settings": found, "environment": _environment()})


def _environment() -> dict[str, Any]:
    return dict(environment(torch.device("cpu")))


def _first_ways(ways: Sequence[Mapping[str, Any]]) -> str:
    """Return what `Live` and B-PAC asked, and how many answers differ."""
    found = [way for way in ways if way["way"] in ("Live", "B-PAC")]
    return ", ".join(
        f"{way['way']} {way['level']}: {way['asked']:.3f} ({way['wrong']:.4f})" for way in found
    )


@app.command("kills")
def kills_command(
    folder: Annotated[Path, typer.Argument(help="Folder of the files that are labelled.")],
    kills: Annotated[int, typer.Option(min=1)] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path, typer.Option(help="The file of results.")] = Path("runs/live/kills.json"),
) -> None:
    """Kill two processes that label one file again and again, and count what is lost or paid again."""
    for faults in trial(folder, kills, processes=2, rows=3000, seed=seed):
        write_json(out, {**vars(faults), "environment": _environment()})
        typer.echo(str(faults))


@app.command("overhead")
def overhead_command(
    folder: Annotated[Path, typer.Argument(help="Folder of the database.")],
    out: Annotated[Path, typer.Option(help="The file of results.")] = Path(
        "runs/live/overhead.json"
    ),
) -> None:
    """Measure what `Live` adds to 20,000 calls of 50 ms, 16 at once."""
    found = overhead(folder / "overhead.db", 20_000, 0.05, 16)
    facts = {"texts": 20_000, "seconds_of_a_call": 0.05, "concurrency": 16}
    write_json(out, {"milliseconds": vars(found), **facts, "environment": _environment()})
    typer.echo(str(found))


if __name__ == "__main__":
    run_app(app)
