"""The command line, `python -m benchmarks.glue`: tasks of GLUE, and of the other folders that register some."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from benchmarks.command_line import check_folder, parse_fields, run_app
from benchmarks.glue.config import RunConfig
from benchmarks.terminal import hide_bars, is_watched, print_table
from ponder.errors import ArgumentError

if TYPE_CHECKING:
    from benchmarks.glue.sweeping.suite import RecipeSpec, Suite
    from benchmarks.glue.sweeping.sweep import Summary

# Commands import what they need, so that `--help` answers before datasets and transformers are there.

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_DEFAULT_OUT = Path("runs/results")
_DEFAULT_WORK = Path("runs/work")
_COMMITTED = Path("benchmarks/results/glue")

GlueDir = Annotated[
    Path | None, typer.Option(envvar="GLUE_DIR", help="GLUE's data, in its own layout; from the hub where not given.")
]
TextDir = Annotated[Path | None, typer.Option(envvar="TEXT_DIR", help="The folder that holds banking77 and clinc150.")]
Out = Annotated[Path, typer.Option(help="Folder of results.")]
Work = Annotated[Path, typer.Option(help="Folder of checkpoints.")]
Backbone = Annotated[str, typer.Option(help="minilm, mpnet, a folder, or a hub name.")]
Selection = Annotated[
    str, typer.Option(help="Choose epoch and hyper-parameters on held_out, or (as PALBERT's paper) on dev.")
]


@app.callback()
def _group() -> None:
    """Fine-tune and evaluate recipes on GLUE and other texts."""


_FLAGS = {"stop_after": ["--early-stopping"]}
_KINDS: dict[str, Any] = {"int": int, "float": float, "bool": bool}


def _with_fields(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of `RunConfig` in the place of its `**fields`."""
    signature, annotated = inspect.signature(command, eval_str=True), cast(Any, Annotated)
    parameters = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    for field in dataclasses.fields(RunConfig):
        if "help" in field.metadata:
            kind, _, optional = str(field.type).partition(" | ")
            flags = _FLAGS.get(field.name, ["--" + field.name.replace("_", "-")])
            option = typer.Option(*flags, help=field.metadata["help"])
            given = _KINDS.get(kind, str)
            annotation = annotated[given | None if optional else given, option]
            made = inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default)
            parameters.append(made.replace(annotation=annotation))
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


@app.command("run")
@_with_fields
def run_command(
    task: Annotated[str, typer.Option(help="A task, for example RTE or Banking77.")],
    glue_dir: GlueDir = None,
    text_dir: TextDir = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Argument of the recipe, for example hidden_concat=false; repeatable.")
    ] = None,
    out: Out = _DEFAULT_OUT,
    work: Work = _DEFAULT_WORK,
    trajectories: Annotated[
        Path | None,
        typer.Option(help="Folder for the full-depth trajectory of each split, for sweeps and certificates."),
    ] = None,
    keep_model: Annotated[
        Path | None,
        typer.Option(
            help="Folder of kept models, for this one; what begins as `vanilla` goes on from its model there."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option(help="No progress bars; a pipe or a log has none anyhow.")] = False,
    **fields: Any,
) -> None:
    """Fine-tune one recipe on one task and write one JSON result."""
    from benchmarks import tasks
    from benchmarks.glue.report import run_cells
    from benchmarks.glue.report.groups import label
    from benchmarks.glue.run import run

    given = tasks.get(task)
    config = RunConfig(given.name, recipe_options=parse_fields("--option", option or []), **fields)
    folder = {"--glue-dir": glue_dir, "--text-dir": text_dir}[given.folder_option]
    path = out / f"{config.key}.json"
    before = path.stat().st_mtime_ns if path.exists() else None
    hide_bars()
    shown = is_watched() and not quiet
    result = run(config, folder, out, work, trajectories=trajectories, models=keep_model, progress=shown)
    print_table(
        (f"{result['task']}, dev", f"{label(result)} on {result['backbone']}"), run_cells(result, given.metrics)
    )
    assert result.path is not None
    was_there = result.path.stat().st_mtime_ns == before
    said = f"was there already (with other data, pass another --out): {result.path}" if was_there else result.path
    print(f"Result: {said}")


@app.command("sweep")
def sweep_command(
    suite: Annotated[str, typer.Option(help="Suite of docs/sweep.md (paper, mini, …), or a JSON file of your own.")],
    backbone: Backbone = "minilm",
    tasks: Annotated[str | None, typer.Option(help="Instead of the suite's, for example CoLA,RTE.")] = None,
    recipes: Annotated[str | None, typer.Option(help="Instead of the suite's, for example pabee,static:k=3.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of the chosen point, instead of the suite's.")] = None,
    fixed: Annotated[
        list[str] | None, typer.Option("--set", help="Field of all runs, for example bf16=true; repeatable.")
    ] = None,
    selection: Selection = "held_out",
    executor: Annotated[str, typer.Option(help="local, ray or inline.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of a run; the cores shared evenly if not given.")
    ] = None,
    cpus_per_run: Annotated[float, typer.Option(min=0.01, help="Cores that Ray sets aside for a run.")] = 1.0,
    gpus_per_run: Annotated[float, typer.Option(min=0.0, help="GPUs that Ray sets aside for it; may be a part.")] = 0.0,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster; started here if not given.")] = None,
    glue_dir: GlueDir = None,
    text_dir: TextDir = None,
    out: Out = _DEFAULT_OUT,
    work: Work = _DEFAULT_WORK,
    keep_model: Annotated[
        Path | None,
        typer.Option(help="Folder in which models of the chosen points are kept, for predict and gates."),
    ] = None,
) -> None:
    """Try a grid for each task and recipe, then the best point with several seeds; start again to go on."""
    from benchmarks import backbones
    from benchmarks.glue.sweeping import executors
    from benchmarks.glue.sweeping import suite as suites
    from benchmarks.glue.sweeping import sweep as sweeps

    check_folder("--glue-dir", glue_dir)
    check_folder("--text-dir", text_dir)
    chosen = _narrowed(suites.get(suite), tasks, recipes, seeds, fixed)
    cells = chosen.cells(backbone, selection)
    backbones.resolve(backbone)
    # Workers, perhaps on other machines, need not stand in this folder.
    given = {"glue_dir": glue_dir, "text_dir": text_dir, "out": out, "work": work, "models": keep_model}
    places: dict[str, Any] = {name: None if path is None else path.resolve() for name, path in given.items()}
    hide_bars()
    console = Console()
    pool = executors.get(executor, workers, threads, cpus_per_run, gpus_per_run, address)
    at_a_time = math.inf if executor == "ray" else workers
    with pool as submit, Live(console=console, auto_refresh=False) as live:
        show: Any = lambda table: live.update(table, refresh=True)  # noqa: E731
        tell: Any = (lambda line: None) if console.is_terminal else (lambda line: print(line, flush=True))
        summary = sweeps.sweep(cells, submit, **places, workers=at_a_time, show=show, tell=tell)
    _tell(console, summary, places["out"])
    if summary.failures:
        raise typer.Exit(1)


def _narrowed(
    suite: Suite, tasks: str | None, recipes: str | None, seeds: int | None, fixed: list[str] | None
) -> Suite:
    """The suite with what the command line says instead."""
    changes: dict[str, Any] = {} if seeds is None else {"seeds": seeds}
    if tasks is not None:
        changes["tasks"] = tuple(_listed("--tasks", tasks))
    if recipes is not None:
        changes["recipes"] = tuple(spec for text in _listed("--recipes", recipes) for spec in _specs(suite, text))
    return dataclasses.replace(suite, **changes).with_fixed(parse_fields("--set", fixed or []))


def _specs(suite: Suite, text: str) -> list[RecipeSpec]:
    """`name`, as the suite has it; or `name:argument=value:…`, with these arguments and the suite's other fields."""
    from benchmarks.glue.sweeping.suite import RecipeSpec

    name, *arguments = map(str.strip, text.split(":"))
    of_suite = [spec for spec in suite.recipes if spec.recipe == name]
    if not arguments:
        return of_suite or [RecipeSpec(name)]
    return [RecipeSpec(name, parse_fields("--recipes", arguments), of_suite[0].fields if of_suite else {})]


def _listed(option: str, text: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        remedy = "Leave it out for those of the suite."
        raise ArgumentError(option, expected="one name or more, with commas", got=repr(text), remedy=remedy)
    return names


def _tell(console: Console, summary: Summary, out: Path) -> None:
    console.print(f"\n{summary.done} runs have a result in {escape(str(out))}.", soft_wrap=True)
    for failure in summary.failures:
        line = f"[red]failed[/] {failure.config.key}: {escape(failure.error)}"
        console.print(line, soft_wrap=True, highlight=False)
    if summary.skipped:
        console.print(f"{summary.skipped} runs were not tried: no point of their grid was chosen.")
    if summary.failures:
        where = escape(str(out / "failed"))
        console.print(f"The errors are in {where}; run the same command to try again.", soft_wrap=True)


@app.command("report")
def report_command(
    results: Out = _COMMITTED,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pages, figures and summary: docs, or (for other results than ours) report in theirs."
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="One self-contained HTML file, and nothing else.")] = None,
    glue_dir: GlueDir = None,
    text_dir: TextDir = None,
    replicates: Annotated[int, typer.Option(min=100, help="Samples of the bootstrap.")] = 10_000,
    only: Annotated[
        list[str] | None, typer.Option(help="Print this part alone, such as table-1; repeatable. With --html: show it.")
    ] = None,
) -> None:
    """Make pages of tables and figures from the JSON results alone (and, for significance, the labels of dev)."""
    from benchmarks.glue.report import report, write
    from benchmarks.glue.results import read_all

    found, folders = read_all(results), {"--glue-dir": glue_dir, "--text-dir": text_dir}
    if html is not None:
        paths = report(found, folders, replicates=replicates, only=only or ()).write(None, html)
    elif only:
        drawn = sorted({*only} & {"figure-2", "figure-3", "figure-4", "flops"})
        if drawn:
            raise ArgumentError(
                "--only",
                expected="tables, where they are printed",
                got=", ".join(drawn),
                remedy="Figures need a file: pass --html report.html, say.",
            )
        print(report(found, folders, draw=False, replicates=replicates, only=only).markdown())
        return
    else:
        folder = out or (Path("docs") if results == _COMMITTED else results / "report")
        if folder.resolve() == results.resolve():
            raise ArgumentError(
                "--out", expected="another folder than that of the results", got=folder, remedy="Name a folder in it."
            )
        paths = write(found, folder, folders, replicates)
    for path in paths:
        Console().print(f"Report: {path}", soft_wrap=True)


@app.command("predict")
def predict_command(
    model: Annotated[
        list[Path], typer.Option(help="A model's folder in that of run --keep-model; repeatable, one a task.")
    ],
    glue_dir: GlueDir = None,
    out: Annotated[Path, typer.Option(help="Folder of the files and the zip.")] = Path("runs/submission"),
    batch_size: Annotated[int, typer.Option(min=1, help="Texts that are answered together.")] = 64,
) -> None:
    """Answer GLUE's test sets, and zip the files that its server takes."""
    from benchmarks.glue.submission import submit

    hide_bars()
    console = Console(soft_wrap=True, highlight=False)
    path = submit(model, glue_dir, out, batch_size=batch_size, say=console.print)
    console.print(f"Submission: {path}")


@app.command("gates")
def gates_command(
    model: Annotated[list[Path], typer.Option(help="A model's folder in that of run --keep-model; repeatable.")],
    glue_dir: GlueDir = None,
    text_dir: TextDir = None,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/gates"),
) -> None:
    """Fit gates to kept models, and compare them with other policies at the same mean exit steps."""
    from benchmarks import tasks
    from benchmarks.glue.gates import measure, rows_of
    from benchmarks.glue.model import load_kept

    hide_bars()
    for folder in model:
        kept = load_kept(folder)
        data = {"--glue-dir": glue_dir, "--text-dir": text_dir}[tasks.get(kept.config.task).folder_option]
        path = measure(kept, data, out)
        print_table((f"{kept.config.key}, dev", "score in percent at ×1.5, ×2 and ×3 in steps"), rows_of(path))
        print(f"Result: {path}")


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder of the report and of the results.")] = Path("demo"),
    backbone: Backbone = "minilm",
    scale: Annotated[float, typer.Option(min=0.01, max=10.0, help="Share of the default number of texts.")] = 1.0,
) -> None:
    """Vanilla, PALBERT and PABEE on the built-in graded tasks: a table and a report page."""
    from benchmarks.graded.demo import demo

    demo(out, backbone=backbone, scale=scale, console=Console())


def main() -> None:
    """Run the command line."""
    run_app(app)
