"""The command line, `python -m benchmarks.glue`: tasks of GLUE and of other folders."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command_line import hide_bars, parse_fields, parse_policy, print_table, run_app
from benchmarks.glue.config import DEFAULT, RunConfig

# Commands import what they need, so that `--help` answers before datasets and transformers are
# there.

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
COMMITTED = Path("benchmarks/results/glue")
REPEATED = Path("benchmarks/results/repeated")

GlueDir = Annotated[
    Path | None,
    typer.Option(
        envvar="GLUE_DIR", help="GLUE's data, in its own layout; from the hub where not given."
    ),
]
TextDir = Annotated[
    Path | None,
    typer.Option(envvar="TEXT_DIR", help="The folder that holds banking77 and clinc150."),
]
Out = Annotated[Path, typer.Option(help="Folder of results.")]
Work = Annotated[Path, typer.Option(help="Folder of checkpoints.")]
Keep = Annotated[
    Path | None, typer.Option(help="Folder in which models and their trajectories are kept.")
]
Backbone = Annotated[str, typer.Option(help="minilm, mpnet, a folder, or a hub name.")]
Fixed = Annotated[
    list[str] | None,
    typer.Option("--set", help="Field of RunConfig: epochs=5, lr=1e-4, seed=1, …; repeatable."),
]


@app.callback()
def _group() -> None:
    """Fine-tune and measure recipes on GLUE and other texts."""


@app.command("run")
def run_command(
    task: Annotated[str, typer.Option(help="A task, for example RTE or Banking77.")],
    recipe: Annotated[str, typer.Option(help="A recipe, for example palbert.")] = DEFAULT,
    backbone: Backbone = "minilm",
    glue_dir: GlueDir = None,
    text_dir: TextDir = None,
    fixed: Fixed = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="Argument of the recipe, for example hidden_concat=false; repeatable."),
    ] = None,
    as_released: Annotated[
        bool, typer.Option("--as-released", help="palbert as its authors' code trains it.")
    ] = False,
    policy: Annotated[
        str | None, typer.Option(help="quantile:q=0.3, say, instead of the recipe's.")
    ] = None,
    out: Out = Path("runs/results"),
    work: Work = Path("runs/work"),
    keep: Keep = None,
) -> None:
    """Fine-tune one recipe on one task and write one JSON result."""
    from benchmarks import tasks
    from benchmarks.glue.report import run_rows
    from benchmarks.glue.run import run

    given = tasks.get(task)
    fields = parse_fields("--set", fixed or [])
    fields["policy"] = None if policy is None else parse_policy(policy).to_dict()
    options = parse_fields("--option", option or [])
    if as_released:
        options["as_released"] = True
    config = RunConfig(
        given.name,
        recipe,
        backbone,
        recipe_options=options,
        **fields,
    )
    hide_bars()
    folder = {"--glue-dir": glue_dir, "--text-dir": text_dir}[given.folder_option]
    result = run(config, folder, out, work, keep=keep, progress=sys.stderr.isatty())
    print_table((f"{config.recipe} on {config.backbone}", f"{given.name}, dev"), run_rows(result))
    print(f"Result: {result.path}")


@app.command("sweep")
def sweep_command(
    suite: Annotated[
        str, typer.Option(help="pays, paper, ablation, mini, …, or a JSON file of your own.")
    ],
    backbone: Backbone = "minilm",
    tasks: Annotated[
        str | None, typer.Option(help="Instead of the suite's, for example CoLA,RTE.")
    ] = None,
    recipes: Annotated[
        str | None, typer.Option(help="Those of the suite alone, for example pabee,static.")
    ] = None,
    fixed: Fixed = None,
    glue_dir: GlueDir = None,
    text_dir: TextDir = None,
    out: Out = Path("runs/results"),
    work: Work = Path("runs/work"),
    keep: Keep = None,
) -> None:
    """Try a grid for each task and recipe, then the best point with several seeds; can be resumed."""
    from benchmarks import tasks as registry
    from benchmarks.glue import sweep as sweeps
    from benchmarks.glue.results import Result
    from benchmarks.glue.run import run

    chosen = sweeps.suite_named(suite)
    if tasks is not None:
        chosen = dataclasses.replace(chosen, tasks=tuple(tasks.split(",")))
    if recipes is not None:
        specs = tuple(spec for spec in chosen.recipes if spec.recipe in recipes.split(","))
        chosen = dataclasses.replace(chosen, recipes=specs)
    hide_bars()
    folders = {"--glue-dir": glue_dir, "--text-dir": text_dir}

    def do(config: RunConfig, folder: Path) -> Result:
        data = folders[registry.get(config.task).folder_option]
        return run(
            config,
            data,
            folder,
            work,
            keep=keep if folder == out else None,
            progress=sys.stderr.isatty(),
        )

    failed = sweeps.sweep(chosen.cells(backbone, **parse_fields("--set", fixed or [])), out, do)
    print(
        f"Results: {out}" + (f"; {len(failed)} runs failed, see {out / 'failed'}" if failed else "")
    )
    if failed:
        raise typer.Exit(1)


@app.command("report")
def report_command(
    results: Out = COMMITTED,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the summary; docs for the committed.")
    ] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="Print this part alone; repeatable.")
    ] = None,
) -> None:
    """Print the tables as Markdown, or write `results-summary.json`, from the JSON results."""
    from benchmarks.glue.report import page, write
    from benchmarks.glue.results import read_all

    found = read_all(results)
    if part or out is None:
        print(page(found, part or ()))
    else:
        for path in write(found, out):
            print(path)


@app.command("bootstrap")
def bootstrap_command(
    first: Annotated[Path, typer.Option(help="Folder of results of one recipe.")] = COMMITTED,
    second: Annotated[Path, typer.Option(help="Folder of those of the other.")] = REPEATED,
    recipes: Annotated[str, typer.Option(help="The two recipes.")] = "frozen,deebert",
    glue_dir: GlueDir = None,
    text_dir: TextDir = None,
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = Path(
        "benchmarks/results/bootstrap"
    ),
) -> None:
    """Compare two recipes, begun from the same fine-tuned models, by a paired bootstrap over the rows of dev."""
    from benchmarks.glue.comparing import compare_recipes
    from benchmarks.glue.results import read_all

    folders = {"--glue-dir": glue_dir, "--text-dir": text_dir}
    ours, theirs = recipes.split(",")
    of_ours = [run for run in read_all(first) if run["recipe"] == ours]
    of_theirs = [run for run in read_all(second) if run["recipe"] == theirs]
    path = compare_recipes(of_ours, of_theirs, folders, out / f"{ours}-{theirs}.json")
    print(f"Result: {path}")


def main() -> None:
    """Run the command line."""
    run_app(app)
