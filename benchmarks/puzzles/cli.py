"""The command line, `python -m benchmarks.puzzles run|stream|report|demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from benchmarks.command_line import MAX_SEED, check_writable, parse_fields, run_app
from benchmarks.puzzles import demo as demonstration
from benchmarks.puzzles.config import PUZZLES, config_of
from benchmarks.puzzles.experiment import check_together, read_results, run, run_stream
from benchmarks.puzzles.learners import LEARNERS, check_learner, learner_of
from benchmarks.puzzles.report import COLUMNS, draw_figure, goal_table, markdown, rows
from benchmarks.puzzles.streaming import MAX_BATCH
from benchmarks.puzzles.summary import summarise_all
from benchmarks.tables import check_marks, write_between_marks
from benchmarks.terminal import is_watched, print_table
from ponder._utils.files import write_json

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Seeds = Annotated[list[int] | None, typer.Option(min=0, max=MAX_SEED, help="Repeat for several. 0 where left out.")]
Out = Annotated[Path, typer.Option(help="Folder of results.")]
States = Annotated[Path, typer.Option(help="Folder of the states of trainings.")]
_LARGE = "Twice the width, ten times the updates, and 1000 problems of every level in each set."


@app.callback()
def _commands() -> None:
    """Train networks on puzzles of every difficulty, and let them stop by themselves."""


@app.command("run")
def run_command(
    puzzle: Annotated[str, typer.Argument(help=f"One of {', '.join(PUZZLES)}.")],
    learner: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(LEARNERS)}; repeat for several. All where left out.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, max=MAX_SEED, help="Repeat for several. 0 where left out.")
    ] = None,
    large: Annotated[bool, typer.Option("--large", help=_LARGE)] = False,
    fixed: Annotated[
        list[str] | None,
        typer.Option("--set", help="Field of the configuration, for example updates=12000; repeatable."),
    ] = None,
    out: Out = Path("runs/puzzles/results"),
    states: States = Path("runs/puzzles"),
) -> None:
    """Train and measure the networks of one puzzle, and print its table. What is done already is not done again."""
    config = config_of(puzzle, large=large, **parse_fields("--set", fixed or []))
    names = [check_learner(name) for name in learner or LEARNERS]
    for name in names:
        learner_of(name, config)  # what no network can be made of is refused before the first is trained
    config.task.check_ready()
    check_writable(out)
    check_writable(states, "--states")
    check_together(out, config, names)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not is_watched()) as progress:
        for one_seed in dict.fromkeys(seed or [0]):
            for name in names:
                bar = progress.add_task(f"{puzzle}, {name}, seed {one_seed}", total=config.updates)

                def tell(update: int, loss: float, bar: TaskID = bar) -> None:
                    progress.update(bar, completed=update)

                run(config, name, one_seed, out=out, states=states, tell=tell)
                progress.update(bar, completed=config.updates)
    _show(puzzle, out)


@app.command("stream")
def stream_command(
    puzzle: Annotated[str, typer.Argument(help=f"One of {', '.join(PUZZLES)}.")],
    seed: Annotated[
        list[int] | None, typer.Option(min=0, max=MAX_SEED, help="Repeat for several. 0 where left out.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each way is timed.")] = 3,
    examples: Annotated[int | None, typer.Option(min=1, help="Problems of every level; all where left out.")] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Problems of a step, in batches and in the stream.")
    ] = MAX_BATCH,
    large: Annotated[bool, typer.Option("--large", help=_LARGE)] = False,
    out: Out = Path("runs/puzzles/results"),
    states: States = Path("runs/puzzles"),
) -> None:
    """Time a stream of mixed difficulty against a fixed depth in full batches, with the solver that `run` trained."""
    columns = ("seed", "depth", "mean steps", "steps saved", "time saved", "processor time saved", "answers equal")
    shown = []
    for one_seed in dict.fromkeys(seed or [0]):
        config = config_of(puzzle, large=large)
        told = run_stream(
            config, one_seed, out=out, states=states, repeats=repeats, examples=examples, max_batch=max_batch
        )
        saved = (f"{told[key]:.1%}" for key in ("steps_saved", "time_saved", "cpu_time_saved"))
        equal = f"{told['answers_equal']} of {told['problems']}"
        shown.append((str(one_seed), str(told["depth"]), f"{told['mean_steps']:.1f}", *saved, equal))
    print_table(columns, shown, title=puzzle)


@app.command("report")
def report_command(
    out: Out = Path("benchmarks/results/puzzles"),
    figure: Annotated[Path | None, typer.Option(help="File of the figure; none where left out.")] = None,
    page: Annotated[Path | None, typer.Option(help="Markdown page to write the table of goals into.")] = None,
    details: Annotated[Path | None, typer.Option(help="Markdown page to write all tables into.")] = None,
) -> None:
    """Train nothing; write `summary.json` and tell what a folder holds."""
    check_marks(page, details)
    summary = summarise_all(out)
    write_json(out / "summary.json", summary)
    for puzzle in summary:
        _show(puzzle, out)
    everything = {puzzle: read_results(out, puzzle) for puzzle in summary}
    if figure is not None:
        draw_figure(figure, everything)
    if page is not None:
        write_between_marks(page, goal_table(summary))
    if details is not None:
        write_between_marks(details, markdown(everything))


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder of the figure.")] = Path("demo"),
    updates: Annotated[int, typer.Option(min=1, help="Updates of the weights.")] = demonstration.UPDATES,
) -> None:
    """Two minutes on one core: learn prefix sums of up to 32 bits, stop when the answer rests, solve 64 bits."""
    check_writable(out)
    told = demonstration.demo(updates)
    shown = [
        (str(level["level"]), f"{level['accuracy']:.1%}", f"{level['mean_steps']:.1f}") for level in told["by_level"]
    ]
    print_table(("bits", "solved", "mean exit step"), shown, title="Stopping once the answer has rested for two steps:")
    path = out / "puzzles.svg"
    demonstration.draw(path, told)
    print(f"\nFigure: {path}")


def _show(puzzle: str, out: Path) -> None:
    print_table(COLUMNS, list(rows(read_results(out, puzzle, whole=False))), title=f"{puzzle}:", grouped=True)


def main() -> None:
    """Run the command line."""
    run_app(app)
