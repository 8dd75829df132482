"""The command line, `python -m benchmarks.speed`."""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.command_line import check_file, check_folder, check_free, check_writable, run_app
from benchmarks.environment import environment
from benchmarks.speed.drawing import draw
from benchmarks.speed.figures import Options
from benchmarks.speed.page import COLUMNS, cells, write_page
from benchmarks.terminal import hide_bars, print_table
from ponder._utils.files import write_json
from ponder.errors import ArgumentError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

SECTIONS = {
    1: "overhead",
    2: "exiting",
    3: "predictor",
    4: "peers",
    5: "streaming",
    6: "training",
    7: "scale",
    8: "device",
    9: "sweeps",
    10: "exporting",
    11: "capturing",
}
"""The module of each section, by number: its `measure(Options)` gives its figures."""
_LISTED = ", ".join(f"{number} {name}" for number, name in SECTIONS.items())


@app.command()
def speed_command(
    sections: Annotated[str, typer.Option(help=f"Numbers, with commas, of {_LISTED}; all where empty.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Small models, to see that it runs.")] = False,
    pairs: Annotated[int, typer.Option(min=1, max=10**6, help="Rounds of interleaved timings, at least.")] = 3,
    threads: Annotated[int, typer.Option(min=0, max=4096, help="Threads; 0 for one each core that may be used.")] = 0,
    glue_dir: Annotated[Path | None, typer.Option(help="Folder in GLUE's layout, for sections 3 and 6.")] = None,
    device: Annotated[str, typer.Option(help="Device that models run on.")] = "cpu",
    out: Annotated[Path, typer.Option(help="Folder of results: numbers and a picture of each section.")] = Path(
        "runs/speed"
    ),
    page: Annotated[Path | None, typer.Option(help="Markdown page, whose figures are replaced.")] = None,
) -> None:
    """Measure what saved steps are worth in time; every figure is a ratio within one run."""
    chosen, place = _numbers(sections), _device(device)
    check_folder("--glue-dir", glue_dir)
    for number in chosen if quick else ():  # what is measured in full takes the place of what is quick
        check_free(out / f"{SECTIONS[number]}.json", {"quick": True})
    check_file("--page", page)
    check_writable(out)
    hide_bars()
    threads = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    options = Options(quick=quick, pairs=pairs, glue_dir=glue_dir, device=place)
    print(f"threads: {threads}, device: {device}" + (", quick: the figures mean little" if quick else ""))
    for number in chosen:
        name = SECTIONS[number]
        start = time.perf_counter()
        print(f"section {number}, {name} …", flush=True)
        figures = importlib.import_module(f"benchmarks.speed.{name}").measure(options)
        told = {"section": name, "number": number, "quick": quick, "figures": figures}
        seconds = round(time.perf_counter() - start, 1)
        write_json(out / f"{name}.json", {**told, "seconds": seconds, "environment": environment(options.device)})
        draw(figures, f"Section {number}, {name}", out / f"{name}.svg")
        print_table(
            COLUMNS, [cells(told) for told in figures], title=f"section {number}: {seconds:.0f} s", grouped=True
        )
        print()
    print(f"Results: {out}")
    if page is not None:
        write_page(page, out)
        print(f"Page: {page}")


def _device(name: str) -> torch.device:
    """A device that is there."""
    try:
        torch.zeros(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what PyTorch raises, by device
        raise ArgumentError(
            "device", expected="a device that PyTorch finds here", got=name, remedy="Pass --device cpu, say."
        ) from error


def _numbers(sections: str) -> list[int]:
    asked = [part.strip() for part in sections.split(",") if part.strip()]
    known = {str(number) for number in SECTIONS}
    if not set(asked) <= known:
        raise ArgumentError(
            "sections",
            expected=f"numbers out of {', '.join(map(str, sorted(SECTIONS)))}",
            got=sections,
            remedy="Pass --sections 1,2,3, say.",
        )
    return [int(part) for part in asked] or list(SECTIONS)


def main() -> None:
    """Run the command line."""
    run_app(app)
