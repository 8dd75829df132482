"""Shared parts of the command lines: errors, tables, progress bars and values of options."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ponder import policies
from ponder.errors import ArgumentError, PonderError
from ponder.policies import ExitPolicy

__all__ = ["bar", "hide_bars", "parse_fields", "parse_policy", "print_table", "run_app"]

_AS_JSON = {"True": "true", "False": "false", "None": "null"}


class Advance(Protocol):
    """Moves a bar on, by one or to a count."""

    def __call__(self, by: int = 1) -> None: ...


def run_app(app: typer.Typer) -> None:
    """Run a command line; errors of `ponder` and of files are one message and exit code 2."""
    try:
        app()
    except (PonderError, OSError) as error:
        Console(stderr=True).print(
            f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False
        )
        sys.exit(2)


def parse_fields(option: str, parts: Iterable[str]) -> dict[str, Any]:
    """Parse `field=value` pairs, with values as in JSON, or True, False and None; others are text.

    Example:
        >>> parse_fields("--option", ["k=3", "taught=True"])
        {'k': 3, 'taught': True}
    """
    fields: dict[str, Any] = {}
    for part in parts:
        field, equals, value = (text.strip() for text in part.partition("="))
        if not equals or not field or field in fields:
            raise ArgumentError(
                option,
                expected="field=value, each once",
                got=repr(part),
                remedy="Write q=0.3, say.",
            )
        try:
            fields[field] = json.loads(_AS_JSON.get(value, value))
        except ValueError:
            fields[field] = value
    return fields


def parse_policy(text: str) -> ExitPolicy:
    """Parse a policy as it is written on a command line: `name`, or `name:field=value,field=value`.

    Example:
        >>> parse_policy("quantile:q=0.4")
        Quantile(q=0.4)
    """
    name, _, rest = text.partition(":")
    return policies.get(name.strip(), **parse_fields("--policy", filter(None, rest.split(","))))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a table; words are wrapped, nothing is cut."""
    table = Table(box=SIMPLE_HEAD)
    for place, name in enumerate(columns):
        table.add_column(escape(name), justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    if title:
        print(title)
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)


def hide_bars() -> None:
    """Silence the bars and notes of Transformers and `datasets`, which would stand between ours."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()


@contextmanager
def bar(name: str, total: int) -> Iterator[Advance]:
    """Show a bar on a terminal, and nothing in a log or a pipe."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
    ) as progress:
        task = progress.add_task(name, total=total)
        yield lambda by=1: progress.advance(task, by)
