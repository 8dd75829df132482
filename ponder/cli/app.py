"""The application `ponder`: its commands, and the options that all of them have.

The commands are the files of `ponder/cli/commands`. Their help is read without importing them; only
the file of the command that is called is imported, so that `ponder --help` is fast, and exports
need no PyTorch.
"""

from __future__ import annotations

import ast
import os
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ponder.cli import commands
from ponder.cli.output import sentences
from ponder.statistics.certificate import LEVEL, percent

__all__ = ["app"]


class _Commands(TyperGroup):
    """The commands of a folder, whose errors and warnings are shown as sentences."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for file in sorted(Path(commands.__file__).parent.glob("[!_]*.py")):
            self.add_command(TyperCommand(file.stem, help=_help_of(file)))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that was called, with its arguments and options: it is imported."""
        name, _, rest = super().resolve_command(ctx, args)
        alone = typer.Typer(
            rich_markup_mode="markdown", pretty_exceptions_enable=False, add_completion=False
        )
        alone.command(name)(import_module(f"{commands.__name__}.{name}").run)
        return name, typer.main.get_command(alone), rest

    def invoke(self, ctx: Any) -> object:
        """Run the command that was called."""
        with sentences():
            return super().invoke(ctx)


def _help_of(file: Path) -> str | None:
    """Return the docstring of a command's function `run`, without importing its file."""
    [run] = [
        node
        for node in ast.parse(file.read_bytes()).body
        if isinstance(node, ast.FunctionDef) and node.name == "run"
    ]
    return ast.get_docstring(run)


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


def _set_threads(number: int | None) -> None:
    if number is not None:
        # Libraries read it when they are loaded, and none is before the command's own file.
        os.environ["OMP_NUM_THREADS"] = str(number)


@app.callback()
def _options(
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
            callback=_set_threads,
            help="The number of threads of a command: ponder --threads 1 serve FOLDER. By default "
            "OMP_NUM_THREADS, or all cores. Commands compute on the CPU.",
        ),
    ] = None,
) -> None:
    """See the help of the application."""
