"""The command line, `python -m benchmarks.samples prepare|record`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command_line import hide_bars, run_app

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Work = Annotated[Path, typer.Option(help="Folder of models, texts and outputs.")]


@app.callback()
def _commands() -> None:
    """Run every command of `ponder` on Banking77, and keep what it prints."""


@app.command("prepare")
def prepare_command(
    text_dir: Annotated[Path, typer.Option(envvar="TEXT_DIR", help="Folder of Banking77.")],
    work: Work = Path("runs/samples"),
) -> None:
    """Fine-tune a classifier and a cross encoder, and write the files of texts."""
    from benchmarks.samples.preparing import prepare

    hide_bars()
    prepare(text_dir, work)


@app.command("record")
def record_command(
    work: Work = Path("runs/samples"),
    only: Annotated[
        list[str] | None, typer.Option(help="Names of samples; all by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The file of samples, which is updated.")] = Path(
        "benchmarks/results/samples.json"
    ),
) -> None:
    """Run the commands in the prepared folder, one after the other, and write what they print."""
    from benchmarks.samples.recording import record

    record(work, out, only or ())


def main() -> None:
    """Run the command line."""
    run_app(app)
