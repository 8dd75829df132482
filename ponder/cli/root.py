"""The application `ponder`, with the options of all commands but without the commands."""

from __future__ import annotations

import os
from importlib.metadata import version as version_of
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ponder.cli.output import sentences
from ponder.statistics.certificate import LEVEL, percent

__all__ = ["app"]


class _Commands(TyperGroup):
    """The commands, whose errors and warnings are shown as sentences."""

    def invoke(self, ctx: Any) -> object:
        """Run the command that was called."""
        with sentences():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="The same answers sooner, with a promise: exits, cascades, int8 and reranking for "
    f"fine-tuned models. By default at most {percent(LEVEL)} of the answers differ, with 95% "
    "confidence.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"ponder {version_of('ponder-torch')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and stop."
        ),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The number of threads of a command: ponder --threads 1 serve FOLDER. By default "
            "OMP_NUM_THREADS, or all cores. Commands compute on the CPU.",
        ),
    ] = None,
) -> None:
    if threads is not None:
        # No library that reads it is loaded before the command's own module is.
        os.environ["OMP_NUM_THREADS"] = str(threads)
