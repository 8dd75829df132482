"""The command line, `python -m benchmarks.positions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.command_line import print_table, run_app
from benchmarks.environment import environment
from benchmarks.files import write_json
from benchmarks.positions.measuring import measure

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
COLUMNS = ("step", "batch", "width", "mean step", "steps saved", "seconds saved", "arrived")
SHAPES = ((8, 64, 256), (8, 64, 512))
"""Rows, positions of a row, width."""


@app.command()
def positions_command(
    turns: Annotated[int, typer.Option(min=1, help="Turns, of which the least counts.")] = 8,
    max_steps: Annotated[int, typer.Option(min=2, help="Steps of full depth.")] = 12,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/positions"),
) -> None:
    """Time loops whose positions halt at drawn steps, beside full depth; one thread, processor time."""
    torch.set_num_threads(1)
    timings = [
        timing.to_dict()
        for step in ("block", "albert")
        for shape in SHAPES
        for timing in measure(step, *shape, max_steps, turns)
    ]
    result = {"turns": turns, "timings": timings, "environment": environment()}
    write_json(out / "positions.json", result)
    print_table(COLUMNS, map(_cells, timings))
    print(f"Result: {out / 'positions.json'}")


def _cells(timing: Mapping[str, Any]) -> Sequence[str]:
    return (
        timing["step"],
        f"{timing['rows']} × {timing['length']}",
        f"{timing['width']}",
        f"{timing['mean_step']:.1f} of {timing['max_steps']}",
        f"{timing['steps_saved']:.0%} (×{timing['steps_times']:.1f})",
        f"{timing['seconds_saved']:.0%} (×{timing['seconds_times']:.1f})",
        f"{timing['arrived']:.2f}",
    )


def main() -> None:
    """Run the command line."""
    run_app(app)
