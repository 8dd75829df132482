"""The commands with their options; what a command does is in a module of its own, `ponder.cli.exits`, say.

That module, and PyTorch with it, is loaded when the command runs, so that `ponder --help` answers at once.
"""

from __future__ import annotations

from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any, Literal

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
Labels = Annotated[
    str | None, typer.Option("--labels", help="The column with labels, if there is one.", metavar="NAME")
]
Disagreement = Annotated[
    float | None, typer.Option(help="How often answers may differ from full depth; 0.01 where left out.")
]
Confidence = Annotated[float, typer.Option(help="Probability that the promise holds.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"ponder {version_of('ponder-torch')}")
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
    labels: Labels = None,
    disagreement: Disagreement = None,
    confidence: Confidence = 0.95,
    speed_up: Annotated[
        float | None, typer.Option(help="Aim at this many times fewer steps instead, and say what it costs.")
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Let the encoder learn too: sooner, full depth may move.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the split of the texts.")] = 0,
    json: Json = False,
) -> None:
    """Give MODEL exits: train them on texts without labels, choose, certify, measure."""
    options = {"disagreement": disagreement, "confidence": confidence, "speed_up": speed_up, "seed": seed}
    _run("exits", model, texts, out, column or [], labels, options, deep=deep, as_json=json)


@app.command()
def doctor(
    folder: ModelFolder, texts: TextsFile, column: Columns = None, labels: Labels = None, json: Json = False
) -> None:
    """Do exits pay here? Which policy, or which fixed step? Judged by labels, or by agreement with full depth."""
    _run("doctor", folder, texts, column or [], labels, as_json=json)


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(help="Folder of `ponder exits` or `ponder export`.", metavar="FOLDER")],
    texts: TextsFile,
    out: Annotated[Path, typer.Option(help="The CSV file to write.")],
    column: Columns = None,
    json: Json = False,
) -> None:
    """Answer every text, each at its exit; the exit step stands beside the answer."""
    _run("predict", folder, texts, out, column or [], as_json=json)


@app.command()
def export(
    folder: ModelFolder,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    to: Annotated[Literal["onnx"], typer.Option(help="The format.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Quantise; the threshold is chosen again on the texts.")] = False,
    texts: Annotated[Path | None, typer.Option(help="What chooses and certifies, as for `ponder exits`.")] = None,
    column: Columns = None,
    disagreement: Annotated[
        float | None,
        typer.Option(help="How often answers may differ; what FOLDER promises where left out. Needed after --deep."),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Probability that the promise holds; 0.95 where left out.")
    ] = None,
    json: Json = False,
) -> None:
    """Write FOLDER as ONNX graphs that stop, which run without PyTorch."""
    options = {"int8": int8, "disagreement": disagreement, "confidence": confidence}
    _run("export", folder, out, texts, column or [], **options, as_json=json)


def _run(name: str, *arguments: Any, **named: Any) -> None:
    run(f"ponder.cli.{name}", "run", *arguments, **named)


app.command()(serve)
