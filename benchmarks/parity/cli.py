"""The command line, `python -m benchmarks.parity`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command_line import bar, print_table, run_app
from benchmarks.files import read_json, write_json
from benchmarks.markdown import spread
from benchmarks.parity.experiment import PAPER, SMALL, run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
COLUMNS = (
    "scene",
    "model",
    "halting",
    "validation",
    "test",
    "exit step",
    "steps per element: validation",
    "test",
)


@app.command()
def parity_command(
    seed: Annotated[
        list[int] | None, typer.Option(min=0, help="Repeat for several. 0 where not given.")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's size: 64 and 96 elements.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates of each model.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/parity"),
) -> None:
    """Train PonderNet on parity, inside and beyond the difficulties that it is tested on.

    A seed whose result is there already is not trained again.
    """
    setting = PAPER if paper else SMALL
    setting = setting if steps is None else replace(setting, steps=steps)
    for one in dict.fromkeys(seed or [0]):
        path = out / f"{setting.name}-s{one}.json"
        if not path.exists():
            with bar(f"parity, seed {one}", setting.steps * len(setting.scenes)) as advance:
                write_json(path, run(setting, one, advance))
    print_table(COLUMNS, rows(results(out)))
    print(f"Results: {out}")


def results(folder: Path) -> list[dict[str, Any]]:
    """Return the results of a folder, by seed."""
    return [read_json(path) for path in sorted(folder.glob("*-s*.json"))]


def rows(found: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each scene, model and way of halting: medians and ranges over seeds."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for result in found:
        for one in result["runs"]:
            for way in one["test"]:
                groups.setdefault((one["scene"], one["learner"], way), []).append(one)
    for (scene, learner, way), runs in groups.items():

        def cell(
            split: str, key: str, form: str, runs: Sequence[Any] = runs, way: str = way
        ) -> str:
            return spread([one[split][way][key] for one in runs], form)

        yield (
            scene,
            learner,
            way,
            cell("validation", "accuracy", "{:.1%}"),
            cell("test", "accuracy", "{:.1%}"),
            cell("test", "mean_exit_step", "{:.2f}"),
            cell("validation", "steps_per_element", "{:+.3f}"),
            cell("test", "steps_per_element", "{:+.3f}"),
        )


def main() -> None:
    """Run the command line."""
    run_app(app)
