"""The command line, `python -m benchmarks.risk`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import ponder
from benchmarks.command_line import bar, print_table, run_app
from benchmarks.environment import environment
from benchmarks.files import write_json
from benchmarks.risk.simulation import simulate, synthetic_scene

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
COLUMNS = (
    "scene",
    "risk",
    "bound",
    "level",
    "asked",
    "violations",
    "mean risk",
    "mean exit step",
    "saving kept",
)


@app.command()
def risk_command(
    trajectory: Annotated[
        list[Path] | None,
        typer.Option(help="Trajectory of a run (glue run --keep); repeat to join splits."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the trajectories in the table.")] = "GLUE",
    trials: Annotated[int, typer.Option(min=2, help="Calibration sets.")] = 1000,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a calibration set.")] = 1000,
    confidence: Annotated[float, typer.Option(help="Probability that the bounds promise.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the calibration sets.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/risk"),
) -> None:
    """Count broken promises of risk control over many calibration sets, and compare the bounds."""
    from benchmarks.risk.simulation import real_scene

    settings = {"trials": trials, "rows": rows, "confidence": confidence, "seed": seed}
    scenes = [synthetic_scene(rows)]
    if trajectory:
        whole = ponder.Trajectory.cat([ponder.Trajectory.load(path) for path in trajectory])
        scenes.append(real_scene(name, whole, rows))
    outcomes = []
    with bar("risk", 12 * len(scenes)) as advance:
        for scene in scenes:
            for outcome in simulate(scene, trials, confidence, seed):
                outcomes.append(outcome)
                advance()
    result = {
        "settings": settings,
        "outcomes": outcomes,
        "environment": environment(torch.device("cpu")),
    }
    write_json(out / "risk.json", result)
    print_table(COLUMNS, map(_cells, outcomes))
    print(f"Result: {out / 'risk.json'}")
    if not all(outcome["kept"] for outcome in outcomes):
        print(
            "error: a promise is broken more often than the simulation's error allows",
            file=sys.stderr,
        )
        sys.exit(1)


def _cells(outcome: Mapping[str, Any]) -> Sequence[str]:
    confidence = outcome["confidence"]
    promised = "mean risk ≤ level"
    if confidence is not None:
        promised = f"violations ≤ {round(100 * (1 - confidence), 6):g}%"
    return (
        outcome["scene"],
        outcome["risk"].replace("_", " "),
        outcome["bound"].replace("_", " "),
        f"{outcome['level']:g}",
        promised,
        f"{outcome['violations']:.1%}",
        f"{outcome['mean_risk']:.4f}",
        f"{outcome['mean_exit_step']:.2f}",
        "–" if outcome["saving"] is None else f"{outcome['saving']:.0%}",
    )


def main() -> None:
    """Run the command line."""
    run_app(app)
