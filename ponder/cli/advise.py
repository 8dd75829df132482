"""The command `advise`: which way makes a classifier cheaper on these texts and this machine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from ponder.advice import Advice, Way, advise
from ponder.cli.output import probe_folder, progress, show
from ponder.cli.report import write_page
from ponder.cli.texts import count, read_texts

__all__ = ["run", "shown"]


def run(
    model: str,
    texts: Path,
    out: Path | None,
    reading: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """Race the ways, print the table, and write the winner to `out`, if it is named."""
    if out is not None:
        probe_folder(out, "advise", model)
    found = read_texts(texts, **reading).without_empty()
    labels = None if found.label_column is None else [row[found.label_column] for row in found.rows]
    with progress() as advance:
        advice = advise(model, found.texts, labels, **options, progress=advance)
    names = ("sentence", "threads", "texts", "remarks", "curve", "moves")
    card: dict[str, Any] = {
        "command": "advise",
        "columns": list(found.columns),
        "ways": advice.table,
    }
    plain = json.dumps(card | {name: getattr(advice, name) for name in names})
    card = json.loads(plain, parse_constant=lambda _: None)  # NaN is no JSON
    if out is not None:
        advice.save(out)
        facts = {"model": Path(model).name, "advice": advice, "missing": math.isnan}
        write_page(out / "report.html", "advice.html.jinja", _figure(advice), **facts)
    show(card, shown(advice), [], as_json=as_json, out=out)


def shown(advice: Advice) -> list[str | Table]:
    """Return the sentence, the table of 80 columns, and the remarks."""
    made = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("way", "ms", "alone", "95th", "×", "range", "other", "≤", "right", "MB", "torch"):
        made.add_column(name, justify="left" if name == "way" else "right", no_wrap=True)
    for way in advice.ways:
        made.add_row(*_cells(way, wins=way is advice.winner))
    teach, choose, check = advice.texts
    legend = (
        f"{check} texts certify ({teach} taught, {choose} chose). ms a text: in batches of 32, alone, and the 95th "
        f"percentile alone; {count(advice.threads, 'thread')}, in turn. other: answers unlike now; ≤: promised."
    )
    return [advice.sentence, made, legend, *advice.remarks]


def _cells(way: Way, *, wins: bool) -> tuple[str, ...]:
    def number(value: float, digits: int = 2) -> str:  # three digits or two, so that the table fits
        return (
            "–"
            if math.isnan(value)
            else f"{value:.{max(digits - (value >= 9.95) - (value >= 99.5), 0)}f}"
        )

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


def _figure(advice: Advice) -> Figure:
    """Draw accuracies, or other answers where there are no labels, against seconds."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes: Any = figure.subplots()
    labelled = not math.isnan(advice.ways[0].accuracy)
    for way in advice.ways:
        median, low, high = (1e3 * second for second in way.seconds)
        score, wins = 100 * (way.accuracy if labelled else way.disagreement), way is advice.winner
        name, bars = way.name + (" (take this)" if wins else ""), [[median - low], [high - median]]
        axes.errorbar(median, score, xerr=bars, fmt="D" if wins else "o", label=name)
    shown = "accuracy, %" if labelled else "other answers than now, %"
    axes.set(xlabel="milliseconds a text, batches of 32", ylabel=shown, xscale="log")
    axes.legend(fontsize="small")
    return figure
