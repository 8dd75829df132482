"""The command line, `python -m benchmarks.glue`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.command_line import run_app
from benchmarks.folders import check_folder
from benchmarks.glue.sweeping.command import sweep_command

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_DEFAULT_OUT = Path("runs/results")
_DEFAULT_WORK = Path("runs/work")
_COMMITTED = Path("benchmarks/results/glue")


@app.callback()
def _group() -> None:
    """Fine-tune and evaluate recipes on GLUE."""


@app.command("run")
def run_command(
    task: Annotated[str, typer.Option(help="A GLUE task, for example RTE.")],
    recipe: Annotated[str, typer.Option(help="A recipe, for example palbert.")] = "ponder",
    backbone: Annotated[str, typer.Option(help="minilm, mpnet, a folder, or a hub name.")] = "minilm",
    glue_dir: Annotated[
        Path | None, typer.Option(help="Folder in GLUE's layout; from the hub where not given.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="For example quantile:q=0.3, instead of the recipe's.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Argument of the recipe, for example hidden_concat=false; repeatable.")
    ] = None,
    readout: Annotated[str, typer.Option(help="What the heads read: mean or pooler.")] = "mean",
    seed: int = 0,
    epochs: Annotated[int, typer.Option(help="Epochs of each stage.")] = 3,
    lr: float = 5e-5,
    lambda_lr: Annotated[float, typer.Option(help="Of the Lambda head, where the recipe has one of its own.")] = 5e-5,
    batch_size: int = 32,
    max_train: Annotated[int | None, typer.Option(help="Use at most so many training examples.")] = None,
    bf16: Annotated[bool, typer.Option(help="Train under bfloat16 autocast.")] = False,
    selection: Annotated[
        str, typer.Option(help="Choose the epoch on held_out, or (as the paper) on dev.")
    ] = "held_out",
    knob: Annotated[
        str,
        typer.Option(help="Take the policy's knob from the recipe, or choose it on held-out data: held_out or budget."),
    ] = "recipe",
    budget: Annotated[float, typer.Option(help="Least speed-up in steps, for --knob budget.")] = 1.5,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = _DEFAULT_OUT,
    work: Annotated[Path, typer.Option(help="Folder of checkpoints.")] = _DEFAULT_WORK,
    trajectories: Annotated[
        Path | None,
        typer.Option(help="Folder for the full-depth trajectory of each split, for sweeps and certificates."),
    ] = None,
    keep_model: Annotated[Path | None, typer.Option(help="Folder in which the trained model is kept.")] = None,
    quiet: Annotated[bool, typer.Option(help="No progress bars.")] = False,
) -> None:
    """Fine-tune one recipe on one task and write one JSON result."""
    from benchmarks.glue import tasks
    from benchmarks.glue.config import RunConfig, parse_fields, parse_policy
    from benchmarks.glue.report import run_line
    from benchmarks.glue.run import run

    config = RunConfig(
        task=tasks.get(task).name,
        recipe=recipe,
        backbone=backbone,
        recipe_options=parse_fields("--option", option or []),
        policy=None if policy is None else parse_policy(policy).to_dict(),
        readout=readout,  # type: ignore[arg-type]
        seed=seed,
        epochs=epochs,
        lr=lr,
        lambda_lr=lambda_lr,
        batch_size=batch_size,
        max_train=max_train,
        bf16=bf16,
        selection=selection,  # type: ignore[arg-type]
        knob=knob,  # type: ignore[arg-type]
        budget=budget,
    )
    was_there = (out / f"{config.key}.json").exists()
    with _without_bars() if quiet else nullcontext():
        result = run(config, glue_dir, out, work, trajectories=trajectories, models=keep_model, progress=not quiet)
    console = Console(soft_wrap=True, highlight=False)
    console.print(run_line(result), markup=False)
    said = f"was there already (with other data, pass another --out): {result.path}" if was_there else result.path
    console.print(f"Result: {said}")


@contextmanager
def _without_bars() -> Iterator[None]:
    """Those of the libraries are off meanwhile."""
    import datasets
    from transformers.utils import logging

    of_datasets, of_transformers = not datasets.are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    try:
        yield
    finally:  # as they were
        if of_datasets:
            datasets.enable_progress_bars()
        if of_transformers:
            logging.enable_progress_bar()


app.command("sweep")(sweep_command)


@app.command("report")
def report_command(
    results: Annotated[Path, typer.Option(help="Folder of results.")] = _COMMITTED,
    out: Annotated[Path | None, typer.Option(help="Markdown file; printed where nothing is written.")] = None,
    html: Annotated[Path | None, typer.Option(help="One self-contained HTML file.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder of the figures (SVG) that the Markdown shows.")] = None,
    glue_dir: Annotated[Path | None, typer.Option(help="GLUE's data: labels, for significance.")] = None,
    replicates: Annotated[int | None, typer.Option(min=100, help="Of the bootstrap; 10,000 where left out.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="A part, such as table-1 or figure-3; repeatable. All where left out.")
    ] = None,
) -> None:
    """Make tables and figures from the JSON results alone."""
    from benchmarks.glue.report import REPLICATES, report
    from benchmarks.glue.results import read_all

    draw = bool(html or figures)
    made = report(read_all(results), glue_dir, draw=draw, only=only or (), replicates=replicates or REPLICATES)
    if out is None and html is None and figures is None:
        print(made.markdown())
    for path in made.write(out, html, figures):
        Console().print(f"Report: {path}", soft_wrap=True)


@app.command("predict")
def predict_command(
    model: Annotated[
        list[Path] | None, typer.Option(help="Folder that `--keep-model` made; repeatable, one a task.")
    ] = None,
    run_key: Annotated[
        list[str] | None, typer.Option("--run", help="Key of a run whose model lies in --models; repeatable.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="For each task the best of this recipe (ponder, static:k=3) in --models, by held-out score."),
    ] = None,
    models: Annotated[Path, typer.Option(help="Folder of kept models.")] = Path("runs/models"),
    results: Annotated[Path, typer.Option(help="Folder of their results, for --recipe.")] = _DEFAULT_OUT,
    glue_dir: Annotated[Path | None, typer.Option(help="GLUE's data; from the hub where not given.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the files and the zip.")] = Path("runs/submission"),
    fill_missing: Annotated[bool, typer.Option(help="Answer tasks without a model by a constant.")] = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
) -> None:
    """Answer GLUE's test sets, and zip the files that its server takes."""
    from benchmarks.glue.keeping import best_kept
    from benchmarks.glue.predict import submit

    folders = [*(model or []), *(models / key for key in run_key or [])]
    folders += [] if recipe is None else best_kept(models, results, recipe)
    console = Console(soft_wrap=True, highlight=False)
    made = submit(folders, glue_dir, out, fill=fill_missing, batch_size=batch_size, say=console.print)
    console.print(f"Submission: {made.path}")


@app.command("clock")
def clock_command(
    model: Annotated[list[Path], typer.Option(help="Folder that `--keep-model` made; repeatable.")],
    results: Annotated[Path, typer.Option(help="Folder of results, those of the models among them.")] = _DEFAULT_OUT,
    glue_dir: Annotated[Path | None, typer.Option(help="GLUE's data; from the hub where not given.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    pairs: Annotated[int, typer.Option(min=1, help="Timings of full depth and exits, taken in turn.")] = 5,
) -> None:
    """Time kept models with every policy, on a machine that does nothing else; the report shows it."""
    from benchmarks.glue.clock import time_policies
    from benchmarks.glue.keeping import load_kept

    console = Console(soft_wrap=True, highlight=False)
    for folder in model:
        path = time_policies(
            load_kept(folder), results, glue_dir, batch_size=batch_size, pairs=pairs, say=console.print
        )
        console.print(f"Timings: {path}")


@app.command("check-submission")
def check_submission_command(
    path: Annotated[Path, typer.Argument(help="The zip.")],
    glue_dir: Annotated[Path | None, typer.Option(help="GLUE's data, for the numbers of rows.")] = None,
) -> None:
    """Say what is wrong with a submission; exit code 1 where something is."""
    from benchmarks.glue.submission import check_submission

    console = Console(soft_wrap=True, highlight=False)
    check_folder("--glue-dir", glue_dir)
    faults = check_submission(path, glue_dir)
    for fault in faults:
        console.print(fault, markup=False)
    if faults:
        sys.exit(1)
    console.print(f"{path}: nothing is wrong with it")


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("demo"),
    backbone: Annotated[str, typer.Option(help="minilm, mpnet, a folder, or a hub name.")] = "minilm",
    scale: Annotated[float, typer.Option(help="Share of the training data, for a quick look.")] = 1.0,
) -> None:
    """Vanilla, PALBERT and PABEE on the built-in graded tasks: a table and a report page."""
    from benchmarks.graded.demo import demo

    console = Console()
    demo(out, backbone=backbone, scale=scale, console=console)


def main() -> None:
    """Run the command line."""
    run_app(app)
