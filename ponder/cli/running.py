"""How a command is run: its module is loaded only now, and an error of the library is a sentence."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from importlib import import_module
from typing import Any

import typer

from ponder.errors import PonderError

__all__ = ["WIDTH", "run"]

WIDTH = 80


def run(module: str, name: str, *arguments: Any, **named: Any) -> None:
    """Run a command of a module; an error of the library is shown on the standard error, with the exit status 1."""
    command: Callable[..., None] = getattr(import_module(module), name)
    try:
        command(*arguments, **named)
    except PonderError as error:
        typer.echo(textwrap.fill(f"ponder: {error}", WIDTH, break_long_words=False, break_on_hyphens=False), err=True)
        raise typer.Exit(1) from error
