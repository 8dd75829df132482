"""The command `sweep` of `python -m benchmarks.glue`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from benchmarks.folders import check_folder

if TYPE_CHECKING:
    from benchmarks.glue.sweeping.suite import RecipeSpec, Suite
    from benchmarks.glue.sweeping.sweep import Summary

__all__ = ["sweep_command"]


def sweep_command(
    suite: Annotated[str, typer.Option(help="Of docs/sweep.md (paper, breadth, mini, …), or a JSON file of your own.")],
    backbone: Annotated[str, typer.Option(help="minilm, mpnet, a folder, or a hub name.")] = "minilm",
    tasks: Annotated[str | None, typer.Option(help="Instead of the suite's, for example CoLA,RTE.")] = None,
    recipes: Annotated[
        str | None, typer.Option(help="Instead of the suite's, for example vanilla,palbert,static:k=3.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of the chosen point, instead of the suite's.")] = None,
    fixed: Annotated[
        list[str] | None, typer.Option("--set", help="Field of all runs, for example bf16=true; repeatable.")
    ] = None,
    max_runs: Annotated[int | None, typer.Option(help="The most runs in all; grids are thinned out at random.")] = None,
    halving: Annotated[
        int | None,
        typer.Option(
            help="Try points with a part of the epochs; of each rung the best 1/N go on, with N times as many."
        ),
    ] = None,
    selection: Annotated[
        str, typer.Option(help="Choose epoch and hyper-parameters on held_out, or (as PALBERT's paper) on dev.")
    ] = "held_out",
    executor: Annotated[str, typer.Option(help="local, ray or inline.")] = "local",
    workers: Annotated[int, typer.Option(help="Runs at a time.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Threads of a run; the cores shared evenly if not given.")] = None,
    cpus_per_run: Annotated[float, typer.Option(help="Cores that Ray sets aside for a run.")] = 1.0,
    gpus_per_run: Annotated[float, typer.Option(help="GPUs that Ray sets aside for a run; may be a part.")] = 0.0,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; started here where not given.")] = None,
    glue_dir: Annotated[Path | None, typer.Option(help="Folder in GLUE's layout; the hub where not given.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/results"),
    work: Annotated[Path, typer.Option(help="Folder of checkpoints.")] = Path("runs/work"),
    keep_model: Annotated[
        Path | None, typer.Option(help="Folder in which the models of the chosen points are kept, for predict.")
    ] = None,
) -> None:
    """Try a grid for each task and recipe, then the best point with several seeds; start again to go on."""
    from benchmarks import backbones
    from benchmarks.glue.sweeping import executors
    from benchmarks.glue.sweeping import suite as suites
    from benchmarks.glue.sweeping.executors.base import Resources
    from benchmarks.glue.sweeping.progress import LiveTable
    from benchmarks.glue.sweeping.sweep import sweep

    check_folder("--glue-dir", glue_dir)
    chosen = _narrowed(suites.get(suite), tasks, recipes, seeds, fixed)
    cells = chosen.cells(backbone, selection, max_runs, halving)
    backbones.resolve(backbone)
    # Workers, perhaps on other machines, need not stand in this folder.
    out, work = out.resolve(), work.resolve()
    glue_dir, keep_model = (None if path is None else path.resolve() for path in (glue_dir, keep_model))
    resources = Resources(workers, threads, cpus_per_run, gpus_per_run, address)
    console = Console()
    with executors.get(executor, resources) as pool, LiveTable(console, workers) as show:
        summary = sweep(cells, pool, glue_dir=glue_dir, out=out, work=work, models=keep_model, show=show)
    _tell(console, summary, out)
    if summary.failures:
        raise typer.Exit(1)


def _narrowed(
    suite: Suite, tasks: str | None, recipes: str | None, seeds: int | None, fixed: list[str] | None
) -> Suite:
    """The suite with what the command line says instead."""
    from benchmarks.glue.config import parse_fields

    changes: dict[str, object] = {}
    if tasks is not None:
        changes["tasks"] = tuple(_listed(tasks))
    if recipes is not None:
        changes["recipes"] = tuple(spec for text in _listed(recipes) for spec in _specs(suite, text))
    if seeds is not None:
        changes["seeds"] = seeds
    return dataclasses.replace(suite, **changes).with_fixed(parse_fields("--set", fixed or []))  # type: ignore[arg-type]


def _specs(suite: Suite, text: str) -> list[RecipeSpec]:
    """`name`, as the suite has it; or `name:argument=value:…`, with these arguments and the suite's other fields."""
    from benchmarks.glue.config import parse_recipe
    from benchmarks.glue.sweeping.suite import RecipeSpec

    name, options = parse_recipe("--recipes", text)
    of_suite = [spec for spec in suite.recipes if spec.recipe == name]
    if not options:
        return of_suite or [RecipeSpec(name)]
    return [RecipeSpec(name, options, of_suite[0].fields if of_suite else {})]


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


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
