"""The command line, `python -m benchmarks.loops run|report|levels`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.command_line import parse_fields, print_table, run_app
from benchmarks.environment import environment
from benchmarks.files import read_json, with_digest, write_json
from benchmarks.loops.levels.cli import app as levels
from benchmarks.loops.report import (
    COLUMNS,
    COMMITTED,
    FORMAT,
    draw_figure,
    draw_sudoku,
    markdown,
    results,
    rows,
)
from benchmarks.loops.tasks import TASKS, TEXTS, Task
from ponder.errors import ArgumentError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


app.add_typer(levels, name="levels")


@app.callback()
def _commands() -> None:
    """Train looped models, and halt them in every way, per row and per position."""


@app.command("run")
def run_command(
    task: Annotated[list[str] | None, typer.Argument(help="Tasks; all if none is named.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, help="Repeat for several. 0 if not given.")
    ] = None,
    fixed: Annotated[
        list[str] | None,
        typer.Option("--set", help="A constant, for example updates=400; repeatable."),
    ] = None,
    problems: Annotated[int, typer.Option(min=2, help="Problems of each split.")] = 512,
    out: Annotated[Path, typer.Option(help="Folder of results and weights.")] = Path("runs/loops"),
) -> None:
    """Train and measure; finished results are read, and what was begun goes on."""
    for name in task or TASKS:
        if name not in TASKS:
            expected = f"one of {', '.join(TASKS)}"
            raise ArgumentError("task", expected=expected, got=repr(name), remedy="Choose one.")
        if name == "characters" and not TEXTS.exists():
            print(f"{name}: skipped, since {TEXTS} is missing.")
            continue
        chosen = replace(TASKS[name], **parse_fields("--set", fixed or []))
        for one in dict.fromkeys(seed or [0]):
            path = out / f"{name}-s{one}.json"
            if not path.exists():
                _run(chosen, one, problems, out, path)
            assert read_json(path)["seed"] == one
        print_table(COLUMNS, rows(results(out)[name]), title=name)


def _run(task: Task, seed: int, problems: int, out: Path, path: Path) -> None:
    """Train the learners of one task and seed, measure them, and write the result."""
    from benchmarks.loops.measuring import measure
    from benchmarks.loops.training import LEARNERS, train, train_gates

    solvers = {}
    training = dict[str, Any]()
    for learner in LEARNERS:
        solvers[learner], training[learner] = train(task, learner, seed, out)
    gates = out / f"{task.name}-gates-s{seed}.pt"
    heads, training["gates"] = train_gates(solvers["supervised"], seed, gates)
    measured = measure(solvers, heads, task, problems)
    answers = measured.pop("answers")
    if seed == 0:  # of one seed, so that the folder stays small
        np.savez_compressed(path.with_suffix(".npz"), **answers)
    setting = {key: value for key, value in asdict(task).items() if not callable(value)}
    made_by = {"format": FORMAT, "setting": setting, "seed": seed, "environment": environment()}
    write_json(path, with_digest({**made_by, "training": training, **measured}))


@app.command("report")
def report_command(
    out: Annotated[Path, typer.Option(help="Folder of results.")] = COMMITTED,
    figure: Annotated[Path | None, typer.Option(help="File of the figure.")] = None,
    sudoku: Annotated[Path | None, typer.Option(help="File of the picture of a sudoku.")] = None,
) -> None:
    """Print the tables of a folder as Markdown, and draw its figures."""
    print(markdown(out))
    if figure is not None:
        draw_figure(figure, results(out))
    if sudoku is not None:
        draw_sudoku(sudoku, results(out))


def main() -> None:
    """Run the command line."""
    run_app(app)
