"""What the commands share: where they may write, what they say of texts, and how results are told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from ponder.cli.running import WIDTH
from ponder.cli.texts import Texts
from ponder.errors import ArgumentError
from ponder.integrations.transformers.tokenizing import Encoded

__all__ = ["BATCH", "check_out", "quiet", "say_left_out", "short", "tell"]

BATCH = 32
"""Texts of a batch, wherever a command runs or times some."""


def quiet() -> None:
    """Transformers' own bars and notes would stand between ours."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def check_out(out: Path, model: str, own: str) -> None:
    """Refuse to write over the model itself, over a file, or among files of something else.

    Args:
        out: The folder to write.
        model: What is read.
        own: Name of the file by which a folder is known as one of this command.
    """
    if out.exists() and Path(model).exists() and out.resolve() == Path(model).resolve():
        raise ArgumentError("out", expected="another folder than the model's", got=out, remedy="Name a new one.")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / own).exists())):
        raise ArgumentError(
            "out", expected=f"a new or empty folder, or one with {own}", got=out, remedy="Name a new one."
        )


def say_left_out(texts: Texts, encoded: Encoded, *, left_out: bool) -> None:
    """Say on the standard error how many texts were empty or cut."""
    if texts.empty:
        typer.echo(
            f"{texts.empty} empty texts {'were left out' if left_out else 'are answered like others'}.", err=True
        )
    if encoded.truncated:
        typer.echo(f"{encoded.truncated} texts were longer than the model takes, and were cut.", err=True)


def tell(card: Mapping[str, Any], sentences: Iterable[str], rows: Iterable[tuple[str, str]], *, as_json: bool) -> None:
    """Results on the standard output: one JSON object for machines, or sentences and a table of 80 columns.

    Args:
        card: All results.
        sentences: What stands above the table.
        rows: Names and values.
        as_json: Whether to print the object for machines.
    """
    if as_json:
        typer.echo(json.dumps(card))
        return
    console = Console(width=WIDTH, highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows:
        table.add_row(name, value)
    with console.capture() as drawn:
        for sentence in sentences:
            console.print(sentence, markup=False)
        if table.rows:
            console.print(table, markup=False)
    typer.echo("\n".join(line.rstrip() for line in drawn.get().splitlines()))  # it pads to the full width


def short(policy: object) -> str:
    """A policy for people: its numbers to six digits."""
    return re.sub(r"\d+\.\d{7,}", lambda number: f"{float(number[0]):.6g}", str(policy))
