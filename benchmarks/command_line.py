"""What the command lines of the benchmarks have in common."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from ponder.errors import PonderError

__all__ = ["MAX_SEED", "run_app"]

MAX_SEED = 2**63 - 1
"""The largest seed that every generator of random numbers takes."""


def run_app(app: typer.Typer) -> None:
    """Run a command line; errors of `ponder`, and of files and disks, are one clear message, and exit code 2."""
    try:
        app()
    except (PonderError, OSError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
