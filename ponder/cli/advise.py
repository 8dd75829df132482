"""The command `advise`: which way makes a classifier cheaper on these texts and this machine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ponder._utils.files import replace_text
from ponder.advice import Advice, Way, advise
from ponder.cli.advice_page import write_page
from ponder.cli.exits_folder import quiet
from ponder.cli.output import CARD, probe_folder, say
from ponder.cli.texts import count, read_texts

__all__ = ["run"]


def run(
    model: str, texts: Path, out: Path | None, reading: Mapping[str, Any], options: Mapping[str, Any], *, as_json: bool
) -> None:
    """Race the ways, print the table, and write the winner.

    Args:
        model: A folder or a hub name.
        texts: The file of texts.
        out: The folder for the winner; None writes nothing.
        reading: Arguments of `read_texts`.
        options: Arguments of `advise`.
        as_json: Print JSON instead of a table.
    """
    quiet()
    if out is not None:
        probe_folder(out, "advise", model)
    found = read_texts(texts, **reading).without_empty()
    column = found.label_column
    labels = None if column is None else [str(row[column]) for row in found.rows]
    advice = advise(model, found.texts, labels, **options, progress=lambda phase: say(f"{phase} …"))
    card: dict[str, Any] = {
        "command": "advise",
        "columns": list(found.columns),
        "sentence": advice.sentence,
        "ways": _plain(advice),
    }
    card |= {"threads": advice.threads, "texts": list(advice.texts), "remarks": list(advice.remarks)}
    if out is not None:
        advice.save(out)
        replace_text(out / CARD, json.dumps(card, indent=1) + "\n")
        write_page(out / "report.html", Path(model).name, advice)
    typer.echo(json.dumps(card) if as_json else _table(advice))
    if not as_json and out is not None:
        typer.echo(f"written to {out} (report.html)")


def _plain(advice: Advice) -> list[dict[str, Any]]:
    """The rows of the table in plain JSON types."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return [{name: plain(value) for name, value in row.items()} for row in advice.table]


def _table(advice: Advice) -> str:
    console, table = Console(width=80, highlight=False, markup=False), Table(box=None, padding=(0, 2, 0, 0))
    table.pad_edge = False
    for name in ("way", "ms", "alone", "×", "range", "other", "≤", "right", "MB", "torch"):
        table.add_column(name, justify="left" if name == "way" else "right", no_wrap=True)
    for way in advice.ways:
        table.add_row(*_cells(way, wins=way is advice.winner))
    teach, choose, check = advice.texts
    with console.capture() as drawn:
        console.print(advice.sentence, table, sep="\n")
        console.print(
            f"{check} texts certify ({teach} taught, {choose} chose); ms a text in batches of 32, and alone (median), "
            f"{count(advice.threads, 'thread')}, in turn; other: answers unlike now; ≤: promised.",
            *advice.remarks,
            sep="\n",
        )
    return "\n".join(line.rstrip() for line in drawn.get().splitlines())


def _cells(way: Way, *, wins: bool) -> tuple[str, ...]:
    def share(value: float) -> str:
        return "–" if math.isnan(value) else f"{100 * value:.1f}%"

    speed, low, high = way.speed_up
    alone = "–" if math.isnan(way.alone[0]) else f"{1e3 * way.alone[0]:.1f}"
    return (
        ("▸ " if wins else "  ") + way.name,
        f"{1e3 * way.seconds[0]:.2f}",
        alone,
        f"{speed:.2f}",
        f"{low:.1f}–{high:.1f}",
        share(way.disagreement),
        share(way.promise),
        share(way.accuracy),
        f"{way.megabytes:.0f}",
        "yes" if way.needs_torch else "no",
    )
