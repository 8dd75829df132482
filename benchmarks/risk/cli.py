"""The command line, `python -m benchmarks.risk`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track

import ponder
from benchmarks.command_line import MAX_SEED, check_file, check_free, check_writable, run_app
from benchmarks.environment import environment
from benchmarks.risk.simulation import TRIALS, Scene, real_scene, simulate, split_scene, synthetic_scene
from benchmarks.terminal import is_watched, print_table
from ponder._utils.files import digest_of, write_json, write_text
from ponder._utils.markdown import markdown_table
from ponder._utils.validation import check_share

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
COLUMNS = ("scene", "risk", "bound", "level", "asked", "violations", "mean risk", "mean exit step", "saving kept")


@app.command()
def risk_command(
    trajectory: Annotated[
        list[Path] | None, typer.Option(help="Trajectory of a run (glue run --trajectories); repeat to join splits.")
    ] = None,
    name: Annotated[str, typer.Option(help="What the trajectories are called in the table.")] = "GLUE",
    trials: Annotated[int, typer.Option(min=2, max=10**6, help="Calibration sets.")] = TRIALS,
    rows: Annotated[int, typer.Option(min=1, max=10**7, help="Rows of a resampled calibration set.")] = 1000,
    confidence: Annotated[float, typer.Option(help="What the bounds promise.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the calibration sets.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/risk"),
    page: Annotated[Path | None, typer.Option(help="Markdown page of the table.")] = None,
) -> None:
    """Count broken promises of risk control over many calibration sets, and what each bound leaves of the saving."""
    check_share("confidence", confidence, remedy="Pass --confidence 0.95, say.")
    settings = {"trials": trials, "rows": rows, "confidence": confidence, "seed": seed}
    scenes = [synthetic_scene(rows)]
    if trajectory:
        whole = ponder.Trajectory.cat([ponder.Trajectory.load(path) for path in trajectory])
        whole = replace(whole, row_ids=torch.arange(len(whole)))
        scenes += [real_scene(name, whole, rows), split_scene(name, whole)]
    made_by = {"settings": settings, "trajectories": [digest_of(path) for path in trajectory or ()]}
    check_free(out / "risk.json", made_by)
    check_file("--page", page)
    check_writable(out)
    outcomes = [outcome.to_dict() for scene in scenes for outcome in _shown(scene, trials, confidence, seed)]
    write_json(out / "risk.json", {**made_by, "outcomes": outcomes, "environment": environment(torch.device("cpu"))})
    shown = [[cell.replace("_", " ") for cell in _cells(outcome)] for outcome in outcomes]
    print_table(COLUMNS, shown, grouped=True)
    print(f"\nResult: {out / 'risk.json'}")
    if page is not None:
        write_text(page, markdown(outcomes, trials, confidence))
    if not all(outcome["kept"] for outcome in outcomes):
        print("error: a promise is broken more often than the simulation's error allows", file=sys.stderr)
        sys.exit(1)


_ABOVE = (
    "How often is a certificate of [risk control](certify.md) broken, and how much of the possible saving is left? "
    "Here are {trials:,} certificates for each line. A promise with confidence {kept:g}% may be broken in {broken:g}% "
    "of them. The page is written by `python -m benchmarks.risk --page`; what is counted is explained in "
    "[Certify a risk](certify.md#does-it-hold)."
)


def markdown(outcomes: list[dict[str, Any]], trials: int, confidence: float) -> str:
    """The table as a page, with the number of certificates of each line and what they promise."""
    percent = round(100 * confidence, 6)
    lines = [
        "# Risk control: promises kept, savings left",
        "",
        _ABOVE.format(trials=trials, kept=percent, broken=round(100 - percent, 6)),
        "",
        *markdown_table(COLUMNS, map(_cells, outcomes)),
    ]
    return "\n".join(lines) + "\n"


def _shown(scene: Scene, trials: int, confidence: float, seed: int) -> Any:
    console = Console(stderr=True)
    done = simulate(scene, trials, confidence, seed)
    return track(done, description=scene.name, total=12, console=console, disable=not is_watched())


def _cells(outcome: dict[str, Any]) -> tuple[str, ...]:
    confidence = outcome["confidence"]
    asked = "mean risk ≤ level" if confidence is None else f"violations ≤ {round(100 * (1 - confidence), 6):g}%"
    return (
        outcome["scene"],
        outcome["risk"],
        outcome["bound"],
        f"{outcome['level']:g}",
        asked if outcome["exact"] else "—",
        f"{outcome['violations']:.1%}",
        f"{outcome['mean_risk']:.4f}",
        f"{outcome['mean_exit_step']:.2f}",
        "—" if outcome["saving"] is None else f"{outcome['saving']:.0%}",
    )


def main() -> None:
    """Run the command line."""
    run_app(app)
