"""Print an outcome as a table of 80 columns or as JSON, and write its card and page."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from ponder._utils.files import replace_text
from ponder.cli.outcome import DataTable, Outcome
from ponder.deploy.folders import CARD

__all__ = ["drawn", "keep", "show"]

_WIDTH = 80


def keep(outcome: Outcome, folder: Path, out: Path) -> Outcome:
    """Write an outcome into a folder; with a title, also as `report.html`. Return what to show.

    Args:
        outcome: The outcome.
        folder: The folder to write into.
        out: The place that it will have.
    """
    made = _made()
    facts = {**outcome.facts, "made": made}
    place = str(out)
    if outcome.title:
        place = f"{out} (report.html)"
        report = import_module("ponder.cli.report")
        report.write_page(folder / "report.html", outcome, made)
    replace_text(folder / CARD, _json(facts, indent=1) + "\n")
    return replace(outcome, facts=facts, rows=[*outcome.rows, ("written to", place)])


def show(outcome: Outcome, *, as_json: bool, to_stderr: bool = False) -> None:
    """Print an outcome."""
    if as_json:
        typer.echo(_json(outcome.facts), err=to_stderr)
        return
    first, *others = outcome.sentences
    parts: list[str | Table] = [first]
    parts += [_data_table(table) for table in outcome.tables if table.printed]
    if outcome.rows:
        parts.append(_pairs(outcome.rows))
    typer.echo(drawn(*parts, *others), err=to_stderr)


def drawn(*parts: str | Table) -> str:
    """Return sentences and tables as text of 80 columns."""
    console = Console(width=_WIDTH, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    # The console pads every line to the full width.
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    """Return names and values as a table without a header."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows:
        table.add_row(name, value)
    return table


def _data_table(data: DataTable) -> Table:
    """Return a table with named columns, of which the first is on the left."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    name, *others = data.columns
    table.add_column(name, justify="left", no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    for place, (first, *cells) in enumerate(data.rows):
        mark = ""
        if data.marked is not None:
            mark = "▸ " if place == data.marked else "  "
        table.add_row(mark + first, *cells)
    return table


def _made() -> dict[str, str]:
    """Return the time, the kind of machine and the version of a folder."""
    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        cores = len(os.sched_getaffinity(0))
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{platform.system()} {platform.machine()}, {cores} cores",
        "ponder": version("ponder-torch"),
    }


def _json(facts: Mapping[str, object], indent: int | None = None) -> str:
    """Return facts as JSON."""
    return json.dumps(_plain(facts), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: object) -> object:
    """Return plain JSON types; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
