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
from ponder.cli.output import CARD, probe_folder, progress
from ponder.cli.texts import count, read_texts

__all__ = ["run", "table"]


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
    labels = None if found.label_column is None else [row[found.label_column] for row in found.rows]
    with progress() as advance:
        advice = advise(model, found.texts, labels, **options, progress=advance)
    card: dict[str, Any] = {"command": "advise", "columns": list(found.columns), "sentence": advice.sentence}
    names = ("threads", "texts", "remarks", "curve", "moves")
    card |= {"ways": _plain(advice), **{name: getattr(advice, name) for name in names}}
    if out is not None:
        advice.save(out)
        replace_text(out / CARD, json.dumps(card, indent=1) + "\n")
        write_page(out / "report.html", Path(model).name, advice)
    typer.echo(json.dumps(card) if as_json else table(advice))
    if not as_json and out is not None:
        typer.echo(f"written to {out} (report.html)")


def _plain(advice: Advice) -> list[dict[str, Any]]:
    """The rows of the table in plain JSON types."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return [{name: plain(value) for name, value in row.items()} for row in advice.table]


def table(advice: Advice) -> str:
    """Return the sentence, the table of 80 columns, and the remarks."""
    console, made = Console(width=80, highlight=False, markup=False), Table(box=None, padding=(0, 1, 0, 0))
    made.pad_edge = False
    for name in ("way", "ms", "alone", "95th", "×", "range", "other", "≤", "right", "MB", "torch"):
        made.add_column(name, justify="left" if name == "way" else "right", no_wrap=True)
    for way in advice.ways:
        made.add_row(*_cells(way, wins=way is advice.winner))
    teach, choose, check = advice.texts
    with console.capture() as drawn:
        console.print(
            advice.sentence,
            made,
            f"{check} texts certify ({teach} taught, {choose} chose). ms a text: in batches of 32, alone, and the 95th "
            f"percentile alone; {count(advice.threads, 'thread')}, in turn. other: answers unlike now; ≤: promised.",
            *advice.remarks,
            sep="\n",
        )
    return "\n".join(line.rstrip() for line in drawn.get().splitlines())


def _cells(way: Way, *, wins: bool) -> tuple[str, ...]:
    def number(value: float, digits: int = 2) -> str:  # three digits or two, so that the table fits
        return "–" if math.isnan(value) else f"{value:.{max(digits - (value >= 9.95) - (value >= 99.5), 0)}f}"

    speed, low, high = way.speed_up
    shares = (way.disagreement, way.promise, way.accuracy)
    return (
        ("▸ " if wins else "  ") + way.name,
        number(1e3 * way.seconds[0]),
        *(number(1e3 * seconds, 1) for seconds in way.alone),
        number(speed),
        "–" if math.isnan(low) else f"{number(low, 1)}–{number(high, 1)}",
        *("–" if math.isnan(share) else f"{100 * share:.1f}%" for share in shares),
        f"{way.megabytes:.0f}",
        "yes" if way.needs_torch else "no",
    )
