"""The command line, `python -m benchmarks.parity`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.command_line import MAX_SEED, check_writable, run_app
from benchmarks.parity.config import PAPER, SMALL, ExperimentConfig
from benchmarks.parity.experiment import LEARNERS, differences, experiment, read_result, read_results
from benchmarks.parity.report import COLUMNS, draw_figure, rows, write_page
from benchmarks.tables import check_marks
from benchmarks.terminal import is_watched, print_table
from ponder._utils.files import write_json
from ponder.errors import ArgumentError
from ponder.objectives import Ponder

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def parity_command(
    seed: Annotated[
        list[int] | None, typer.Option(min=0, max=MAX_SEED, help="Seed of a run; repeat for several. 0 where left out.")
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="The paper's size: 64 and 96 elements.")] = False,
    steps: Annotated[int | None, typer.Option(help="Updates of each model.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Most minutes for each model (there are four a seed).")] = None,
    beta: Annotated[float | None, typer.Option(help="Weight of PonderNet's divergence.")] = None,
    tau: Annotated[float | None, typer.Option(help="ACT's time penalty.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/parity"),
    page: Annotated[Path | None, typer.Option(help="Markdown page to write the tables into.")] = None,
    report: Annotated[bool, typer.Option("--report", help="Train nothing; tell what the folder holds.")] = False,
) -> None:
    """Train PonderNet and ACT on parity, inside and beyond the difficulties that they are tested on.

    A seed whose result is there already is not trained again.
    """
    changes: dict[str, Any] = {"steps": steps, "beta": beta, "tau": tau}
    config = replace(PAPER if paper else SMALL, **{key: value for key, value in changes.items() if value is not None})
    _check(config, minutes)
    check_marks(page)
    if not report:
        _check_finished(config, minutes, out)
        check_writable(out)
        asked = dict.fromkeys(seed or [0])
        _run(config, [each for each in asked if not _path(out, config, each).exists()], minutes, out)
    _tell(read_results(out, config.name), out, config.name, page)


def _run(config: ExperimentConfig, seeds: Sequence[int], minutes: float | None, out: Path) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not is_watched()) as progress:
        bar = progress.add_task("parity", total=config.steps * len(config.scenes) * len(LEARNERS) * len(seeds))
        titles: list[str] = []

        def tell(title: str, done: int, accuracy: float | None) -> None:
            if title not in titles:
                titles.append(title)
                progress.update(bar, description=title)
            if accuracy is not None:
                progress.update(bar, description=f"{title}: {accuracy:.1%}")
            progress.update(bar, completed=config.steps * (len(titles) - 1) + done)

        for seed in seeds:
            path = _path(out, config, seed)
            parts = path.with_suffix(".parts")
            write_json(path, experiment(config, seed, minutes, tell, parts))
            shutil.rmtree(parts, ignore_errors=True)


def _path(out: Path, config: ExperimentConfig, seed: int) -> Path:
    return out / f"{config.name}-s{seed}.json"


def _check_finished(config: ExperimentConfig, minutes: float | None, out: Path) -> None:
    """Refuse to mix experiments in one folder, before anything is trained."""
    expected = json.loads(json.dumps(asdict(config)))
    for path in sorted(out.glob(f"{config.name}-s*.json")):
        differing = differences(read_result(path), expected, minutes)
        if differing:
            raise ArgumentError(
                "--out",
                expected="a folder without results of another experiment",
                got=f"{path}, which differs in {', '.join(differing)}",
                remedy="Choose another folder, or the same options.",
            )


def _tell(results: Sequence[dict[str, Any]], out: Path, name: str, page: Path | None) -> None:
    print_table(COLUMNS, [row.cells() for row in rows(results)], grouped=True)
    print(f"\nResults: {out}")
    if page is None:
        draw_figure(out / f"{name}.svg", results)
    else:
        write_page(page, results)


def _check(config: ExperimentConfig, minutes: float | None) -> None:
    """Refuse what no training could follow."""
    Ponder(config.beta)
    for argument, value, least in (("steps", config.steps, 1), ("tau", config.tau, 0)):
        if not least <= value < float("inf"):
            raise ArgumentError(
                argument, expected=f"a number ≥ {least}", got=value, remedy=f"Leave --{argument} out for the default."
            )
    if minutes is not None and not 0 < minutes < float("inf"):
        raise ArgumentError("minutes", expected="a finite number > 0", got=minutes, remedy="Pass --minutes 2, say.")


def main() -> None:
    """Run the command line."""
    run_app(app)
