"""The commands with their options; what `exits`, `doctor` and `predict` do is in `ponder.cli.commands`.

That module, and PyTorch with it, is loaded when a command runs, so that `ponder --help` answers at once.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from ponder.cli.running import run
from ponder.cli.serve import serve

__all__ = ["app"]

app = typer.Typer(
    help="Exits for a fine-tuned classifier: the same answers, sooner, with a promise.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ModelFolder = Annotated[Path, typer.Argument(help="A folder that `ponder exits` wrote.", metavar="FOLDER")]
TextsFile = Annotated[Path, typer.Option("--texts", help="CSV, JSON lines, Parquet, or a text on each line.")]
Columns = Annotated[
    list[str] | None, typer.Option("--column", help="The column with the texts; twice for pairs.", metavar="NAME")
]


def _version(asked: bool) -> None:
    if asked:
        print(f"ponder {import_module('ponder').__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
def exits(
    model: Annotated[str, typer.Argument(help="A fine-tuned classifier: a folder or a hub name.", metavar="MODEL")],
    texts: TextsFile,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    column: Columns = None,
    disagreement: Annotated[float, typer.Option(help="How often answers may differ from MODEL's.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="Of the promise.")] = 0.95,
    speed_up: Annotated[
        float | None, typer.Option(help="Aim at this many times fewer steps, and say what it costs.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
) -> None:
    """Give MODEL exits: train them on texts without labels, choose, certify, measure."""
    options = {"disagreement": disagreement, "confidence": confidence, "speed_up": speed_up, "seed": seed}
    _run("exits", model, texts, out, column or [], options)


@app.command()
def doctor(folder: ModelFolder, texts: TextsFile, column: Columns = None) -> None:
    """Do exits pay here? Which policy, or which fixed step? Judged by agreement with full depth."""
    _run("doctor", folder, texts, column or [])


@app.command()
def predict(
    folder: ModelFolder,
    texts: TextsFile,
    out: Annotated[Path, typer.Option(help="The CSV file to write.")],
    column: Columns = None,
) -> None:
    """Answer every text, each at its exit; the exit step stands beside the answer."""
    _run("predict", folder, texts, out, column or [])


def _run(name: str, *arguments: Any) -> None:
    run("ponder.cli.commands", name, *arguments)


app.command()(serve)
