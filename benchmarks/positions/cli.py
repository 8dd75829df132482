"""The command line, `python -m benchmarks.positions run|record`."""

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
COLUMNS = (
    "step",
    "exits of",
    "batch",
    "width",
    "mean step",
    "steps saved",
    "seconds saved",
    "arrived",
    "over rows",
)
WIDTHS = (256, 512)
EXITS = Path(__file__).parents[1] / "results" / "positions" / "exits.json"


@app.command("run")
def run_command(
    turns: Annotated[int, typer.Option(min=1, help="Turns, of which the least counts.")] = 8,
    width: Annotated[
        list[int] | None, typer.Option(min=64, help="Repeat for several. 256 and 512 if not given.")
    ] = None,
    exits: Annotated[Path, typer.Option(help="Exit steps, as `record` writes them.")] = EXITS,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/positions"),
) -> None:
    """Time loops whose positions halt as those of trained models, beside full depth; one thread, processor time."""
    from benchmarks.positions.exits import read

    torch.set_num_threads(1)
    timings = [
        measure(step, own, size, turns).to_dict()
        for step in ("block", "albert")
        for size in width or WIDTHS
        for own in read(exits)
    ]
    result = {"turns": turns, "timings": timings, "environment": environment()}
    write_json(out / "positions.json", result)
    print_table(COLUMNS, map(_cells, timings))
    print(f"Result: {out / 'positions.json'}")


@app.command("record")
def record_command(
    weights: Annotated[Path, typer.Argument(help="A folder of LoopBench: weights and results.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the models.")] = 0,
    out: Annotated[Path, typer.Option(help="File of the exit steps.")] = Path(
        "runs/positions/exits.json"
    ),
) -> None:
    """Write the exit steps that trained models of LoopBench take on test problems."""
    from benchmarks.positions.exits import record

    record(weights, out, seed)


def _cells(timing: Mapping[str, Any]) -> Sequence[str]:
    return (
        timing["step"],
        timing["task"],
        f"{timing['rows']} × {timing['length']}",
        f"{timing['width']}",
        f"{timing['mean_step']:.1f} of {timing['max_steps']}",
        f"{timing['steps_saved']:.0%} (×{timing['steps_times']:.1f})",
        f"{timing['seconds_saved']:.0%} (×{timing['seconds_times']:.1f})",
        f"{timing['arrived']:.2f}",
        f"×{timing['seconds_times_over_rows']:.2f}",
    )


def main() -> None:
    """Run the command line."""
    run_app(app)
