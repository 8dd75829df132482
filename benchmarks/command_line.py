"""What the command lines of the benchmarks have in common: how errors are shown, and folders that are checked first."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from ponder.errors import ArgumentError, PonderError

__all__ = ["MAX_SEED", "check_folder", "check_writable", "run_app"]

MAX_SEED = 2**63 - 1
"""The largest seed that every generator of random numbers takes."""


def run_app(app: typer.Typer) -> None:
    """Run a command line; errors of `ponder`, and of files and disks, are one clear message, and exit code 2."""
    try:
        app()
    except (PonderError, OSError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)


def check_folder(option: str, folder: Path | None) -> None:
    """Refuse a folder to read from that is not there; `option` gave it."""
    if folder is not None and not folder.is_dir():
        raise ArgumentError(option, expected="a folder that is there", got=str(folder), remedy="Correct the path.")


def check_writable(folder: Path, option: str = "--out") -> None:
    """Refuse, before anything is trained, a folder that cannot be written to; `option` gave it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # it has no name, so a kill leaves nothing
    except OSError as error:
        got = f"{folder} ({error.strerror})"
        raise ArgumentError(
            option, expected="a folder that can be written", got=got, remedy="Choose another."
        ) from error
