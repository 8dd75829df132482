"""The command line, `python -m benchmarks.puzzles run|report|demo`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.command_line import bar, parse_fields, print_table, run_app
from benchmarks.environment import environment
from benchmarks.files import read_json, with_digest, write_json
from benchmarks.puzzles.report import (
    COLUMNS,
    COMMITTED,
    FORMAT,
    draw_figure,
    markdown,
    results,
    rows,
)
from benchmarks.puzzles.solver import LEARNERS, SETTINGS, Setting
from ponder.errors import ArgumentError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _commands() -> None:
    """Train networks on puzzles of every difficulty, and let them stop by themselves."""


@app.command("run")
def run_command(
    puzzle: Annotated[str, typer.Argument(help=f"One of {', '.join(SETTINGS)}.")],
    learner: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(LEARNERS)}; repeatable.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, help="Repeat for several. 0 where not given.")
    ] = None,
    fixed: Annotated[
        list[str] | None,
        typer.Option("--set", help="A constant, for example updates=12000; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/puzzles"),
) -> None:
    """Train and measure the networks of one puzzle, and print its table; finished results are read, not repeated."""
    if puzzle not in SETTINGS:
        raise ArgumentError(
            "puzzle",
            expected=f"one of {', '.join(SETTINGS)}",
            got=repr(puzzle),
            remedy="Choose one.",
        )
    setting = replace(SETTINGS[puzzle], **parse_fields("--set", fixed or []))
    for one in dict.fromkeys(seed or [0]):
        for name in learner or LEARNERS:
            path = out / f"{puzzle}-{name}-s{one}.json"
            if not path.exists():
                for result in _results(setting, name, one):
                    write_json(
                        path.with_name(f"{puzzle}-{result['learner']}-s{one}.json"),
                        with_digest(result),
                    )
            assert read_json(path)["seed"] == one
    print_table(COLUMNS, rows(results(out)[puzzle]), title=puzzle)


def _results(setting: Setting, learner: str, seed: int) -> list[dict[str, Any]]:
    """Train and measure one network; the looped one is timed in a stream too."""
    from benchmarks.puzzles.measuring import measure, stream
    from benchmarks.puzzles.solver import solver, train
    from ponder.policies import ExitPolicy

    torch.manual_seed(seed)
    model = solver(setting, learner)
    with bar(f"{setting.puzzle}, {learner}, seed {seed}", setting.updates) as advance:
        training = train(model, setting, seed, advance)
    made_by = {
        "format": FORMAT,
        "setting": asdict(setting),
        "seed": seed,
        "environment": environment(),
    }
    measured = measure(model, setting)
    found = [{**made_by, "learner": learner, "training": training, **measured}]
    if learner == "looped":
        policy = ExitPolicy.from_dict(measured["ways"][measured["best_rule"]]["policy"])
        depth = measured["ways"]["best fixed depth"]["policy"]["step"]
        found.append({**made_by, "learner": "stream", **stream(model, setting, policy, depth)})
    return found


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
    from benchmarks.puzzles.demo import demo, draw

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


def main() -> None:
    """Run the command line."""
    run_app(app)
