"""The command line, `python -m benchmarks.speed`."""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.command_line import hide_bars, print_table, run_app
from benchmarks.environment import environment
from benchmarks.files import write_json
from benchmarks.speed.subjects import COLUMNS, Options, cells

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SECTIONS = {2: "exiting", 3: "streaming", 10: "exporting"}
"""The module of each section, by number: its `measure(Options)` gives its figures."""


@app.command()
def speed_command(
    sections: Annotated[str, typer.Option(help="2 exiting, 3 streaming, 10 exporting.")] = "2,3,10",
    quick: Annotated[
        bool, typer.Option("--quick", help="Small models, to see that it runs.")
    ] = False,
    pairs: Annotated[int, typer.Option(min=1, help="Rounds of interleaved timings, at least.")] = 3,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads; 0 for one each core that may be used.")
    ] = 0,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/speed"),
) -> None:
    """Measure what saved steps are worth in time; every figure is a ratio within one run."""
    hide_bars()
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    options = Options(quick=quick, pairs=pairs)
    for number in map(int, sections.split(",")):
        name = SECTIONS[number]
        start = time.perf_counter()
        figures = importlib.import_module(f"benchmarks.speed.{name}").measure(options)
        seconds = round(time.perf_counter() - start, 1)
        result = {
            "section": name,
            "number": number,
            "quick": quick,
            "figures": figures,
            "seconds": seconds,
        }
        write_json(out / f"{name}.json", {**result, "environment": environment()})
        print_table(
            COLUMNS, map(cells, figures), title=f"section {number}, {name}: {seconds:.0f} s"
        )
    print(f"Results: {out}")


def main() -> None:
    """Run the command line."""
    run_app(app)
