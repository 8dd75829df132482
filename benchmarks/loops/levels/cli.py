"""The commands of difficulty, `python -m benchmarks.loops levels run|report|demo`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.command_line import bar, parse_fields, print_table
from benchmarks.environment import environment
from benchmarks.files import read_json, with_digest, write_json
from benchmarks.loops.levels.report import (
    COLUMNS,
    COMMITTED,
    FORMAT,
    draw_figure,
    markdown,
    results,
    rows,
)
from benchmarks.loops.levels.solver import SETTINGS, Setting
from ponder.errors import ArgumentError

__all__ = ["app"]

app = typer.Typer(
    add_completion=False, help="Steps against difficulty, in sizes larger than trained, too."
)


@app.command("run")
def run_command(
    puzzle: Annotated[str, typer.Argument(help=f"One of {', '.join(SETTINGS)}.")],
    seed: Annotated[
        list[int] | None, typer.Option(min=0, help="Repeat for several. 0 if not given.")
    ] = None,
    fixed: Annotated[
        list[str] | None,
        typer.Option("--set", help="A constant, for example updates=12000; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/levels"),
) -> None:
    """Train and measure the solver of one puzzle, and print its table; finished results are read, not repeated."""
    if puzzle not in SETTINGS:
        raise ArgumentError(
            "puzzle",
            expected=f"one of {', '.join(SETTINGS)}",
            got=repr(puzzle),
            remedy="Choose one.",
        )
    setting = replace(SETTINGS[puzzle], **parse_fields("--set", fixed or []))
    for one in dict.fromkeys(seed or [0]):
        path = out / f"{puzzle}-looped-s{one}.json"
        if not path.exists():
            write_json(path, with_digest(_result(setting, one)))
        assert read_json(path)["seed"] == one
    print_table(COLUMNS, rows(results(out)[puzzle]), title=puzzle)


def _result(setting: Setting, seed: int) -> dict[str, Any]:
    """Train and measure one solver."""
    from benchmarks.loops.levels.measuring import measure
    from benchmarks.loops.levels.solver import solver, train

    torch.manual_seed(seed)
    model = solver(setting)
    with bar(f"{setting.puzzle}, seed {seed}", setting.updates) as advance:
        training = train(model, setting, seed, advance)
    made_by = {
        "format": FORMAT,
        "setting": asdict(setting),
        "seed": seed,
        "environment": environment(),
    }
    return {**made_by, "training": training, **measure(model, setting)}


@app.command("report")
def report_command(
    out: Annotated[Path, typer.Option(help="Folder of results.")] = COMMITTED,
    figure: Annotated[Path | None, typer.Option(help="File of the figure.")] = None,
) -> None:
    """Print the tables of a folder as Markdown, and draw its figure."""
    print(markdown(out))
    if figure is not None:
        draw_figure(figure, results(out))


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder of the figure.")] = Path("demo"),
    updates: Annotated[int, typer.Option(min=1, help="Updates of the weights.")] = 2000,
) -> None:
    """Two minutes on one core: learn prefix sums of up to 32 bits, stop when the answer rests, solve 64 bits."""
    from benchmarks.loops.levels.demo import demo, draw

    with bar("prefix sums", updates) as advance:
        found = demo(updates, advance)
    shown = [
        (level["level"], f"{level['accuracy']:.1%}", f"{level['mean_steps']:.1f}")
        for level in found["by_level"]
    ]
    print_table(
        ("bits", "solved", "mean exit step"),
        shown,
        title="Stopping once the answer has rested for two steps:",
    )
    draw(out / "puzzles.svg", found)
    print(f"Figure: {out / 'puzzles.svg'}")
