"""The command `advise`: which way makes a classifier cheaper on these texts and this machine."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ponder.advice import Advice, Way, advise
from ponder.cli.options import (
    Columns,
    Confidence,
    Json,
    Labels,
    Level,
    Model,
    NoHeader,
    Seed,
    TextsFile,
)
from ponder.cli.outcome import DataTable, Outcome, usage_of
from ponder.cli.output import new_folder, probe_folder, progress
from ponder.cli.show import keep, show
from ponder.cli.texts import read_texts
from ponder.deploy.folders import remember
from ponder.statistics.certificate import CONFIDENCE, LEVEL, count
from ponder.statistics.used import Used

__all__ = ["outcome_of", "run"]

_COLUMNS = ("way", "ms a text", "times faster", "other answers", "promised", "accuracy")
_DETAILS = ("way", "ms alone", "95th percentile", "range", "MB", "PyTorch")
_DETAILS_NOTE = (
    "ms alone: milliseconds of a text by itself, median and 95th percentile; range: of times "
    "faster; PyTorch: whether it is needed."
)
_FACTS = ("sentence", "statement", "threads", "texts", "remarks", "curve", "moves", "confidence")
_UNKNOWN = "–"
_TICKS = [base * 10.0**power for power in range(-3, 5) for base in (1, 2, 5)]


def _seconds(given: str) -> float:
    """Return a time as seconds: ``"5ms"``, ``"0.2s"`` or ``"0.2"``."""
    if not re.fullmatch(r"\d*\.?\d+(ms|s)?", given):
        raise typer.BadParameter(f"expected a time, got {given}. Write 5ms, say.")
    if given.endswith("ms"):
        return float(given.removesuffix("ms")) / 1e3
    return float(given.removesuffix("s"))


def run(
    model: Model,
    texts: TextsFile,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder for the winner; without it nothing is written."),
    ] = None,
    column: Columns = None,
    labels: Labels = None,
    no_header: NoHeader = False,
    disagreement: Level = LEVEL,
    within: Annotated[
        float | None,
        typer.Option(
            help="Take the most faithful way that answers 95% of single texts in this time, "
            "for example 5ms.",
            parser=_seconds,
            metavar="TIME",
        ),
    ] = None,
    confidence: Confidence = CONFIDENCE,
    details: Annotated[
        bool,
        typer.Option(
            "--details",
            help="Show single texts, ranges and sizes too, as --within does.",
        ),
    ] = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare ways to make MODEL cheaper on your texts and this machine, and recommend one.

    Example: `ponder advise my-model --texts traffic.csv --out advised`
    """
    if out is not None:
        probe_folder(out, "advise", model)
    found = read_texts(texts, column, labels, header=not no_header).without_empty()
    with progress() as advance:
        advice = advise(
            model,
            found.texts,
            found.labels,
            disagreement=disagreement,
            confidence=confidence,
            within=within,
            seed=seed,
            progress=advance,
        )
    facts = {
        "command": "advise",
        "columns": list(found.columns),
        "ways": advice.table,
        **{name: getattr(advice, name) for name in _FACTS},
    }
    name = Path(model).name
    details = details or within is not None
    if out is None:
        show(outcome_of(advice, facts, name, details=details), as_json=json)
        return
    facts["reference"] = remember(model, out)
    with new_folder(out) as new:
        advice.save(new)
        Used.of(found.texts, taught=advice.taught).write(new)
        outcome = keep(outcome_of(advice, facts, name, out, details=details), new, out)
    show(outcome, as_json=json)


def outcome_of(
    advice: Advice,
    facts: Mapping[str, object],
    name: str,
    out: Path | None = None,
    *,
    details: bool = False,
) -> Outcome:
    """Return the sentence, the tables of the ways, the remarks, and the page.

    Args:
        advice: The result of the race.
        facts: Its plain values.
        name: Name of the model.
        out: The folder of the winner, or None.
        details: Whether the screen shows the second table of the ways too.
    """
    winner = advice.ways.index(advice.winner)
    teach, choose, check = advice.texts
    note = (
        f"{check} texts certify ({teach} taught, {choose} chose), with "
        f"{100 * advice.confidence:g}% confidence. Times are of batches of 32 texts on "
        f"{count(advice.threads, 'thread')}."
    )
    cells = [_cells(way) for way in advice.ways]
    others = [_detail_cells(way) for way in advice.ways]
    sentences = [advice.sentence, note]
    if details:
        sentences.append(_DETAILS_NOTE)
    usage = list[tuple[str, str]]()
    if out is not None:
        usage = usage_of(out, torch=advice.winner.needs_torch)
    return Outcome(
        facts,
        [*sentences, *advice.remarks],
        figure=_figure(advice),
        tables=[
            DataTable("Ways", _COLUMNS, cells, note, marked=winner, printed=True),
            DataTable(
                "Details of the ways",
                _DETAILS,
                others,
                _DETAILS_NOTE,
                marked=winner,
                printed=details,
            ),
            *_tables(advice),
        ],
        title=f"Advice for {name}",
        usage=usage,
    )


def _tables(advice: Advice) -> list[DataTable]:
    """Return the effects of more texts and other levels, and the texts whose answer changes."""
    work = [(str(texts), f"{100 * share:.0f}%") for texts, share in advice.curve]
    moves = [(f"{100 * level:.3g}%", f"{100 * share:.0f}%") for level, share in advice.moves]
    note = "Only the level that was asked for is promised; ask for another by --disagreement."
    columns = ("other answers allowed", "work that is left")
    none_changes = ""
    if not advice.changed:
        none_changes = "None of those that certify."
    return [
        DataTable(
            "What more texts would bring",
            ("by so many texts", "work that is left"),
            work,
            "The share of the model's work that is done if so many texts choose and certify.",
            printed=True,
        ),
        DataTable("Other levels", columns, moves, note),
        DataTable(
            "Texts whose answer changes",
            ("text", "now", "then"),
            advice.changed,
            none_changes,
        ),
    ]


def _cells(way: Way) -> tuple[str, ...]:
    """Return what decides on a way: a cell for each of `_COLUMNS`."""
    promised = _UNKNOWN
    if not math.isnan(way.promise):
        promised = f"≤ {_percent(way.promise)}"
    return (
        way.name,
        _number(1e3 * way.seconds[0]),
        _number(way.speed_up[0]),
        _percent(way.disagreement),
        promised,
        _percent(way.accuracy),
    )


def _detail_cells(way: Way) -> tuple[str, ...]:
    """Return a cell for each of `_DETAILS`."""
    _, low, high = way.speed_up
    median_alone, slow_alone = way.alone
    return (
        way.name,
        _number(1e3 * median_alone, 1),
        _number(1e3 * slow_alone, 1),
        _range(low, high),
        f"{way.megabytes:.0f}",
        "yes" if way.needs_torch else "no",
    )


def _number(value: float, digits: int = 2) -> str:
    """Return a number with three digits or two, so that the table fits."""
    if math.isnan(value):
        return _UNKNOWN
    # Each digit more before the point is one less behind it.
    behind = digits - (value >= 9.95) - (value >= 99.5)
    return f"{value:.{max(behind, 0)}f}"


def _range(low: float, high: float) -> str:
    if math.isnan(low):
        return _UNKNOWN
    return f"{_number(low, 1)}–{_number(high, 1)}"


def _percent(share: float) -> str:
    if math.isnan(share):
        return _UNKNOWN
    return f"{100 * share:.1f}%"


def _figure(advice: Advice) -> Figure:
    """Draw accuracies, or without labels other answers, against seconds, with names of points."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes: Axes = figure.subplots()
    labelled = not math.isnan(advice.ways[0].accuracy)
    points = list[tuple[float, float, str]]()
    for way in advice.ways:
        median, low, high = (1e3 * second for second in way.seconds)
        share = way.accuracy if labelled else way.disagreement
        name = way.name
        marker = "o"
        color = "#4a5568"
        if way is advice.winner:
            name = f"{name} (take this)"
            marker = "D"
            color = "#1a7f37"
        bars = [[median - low], [high - median]]
        axes.errorbar(median, 100 * share, xerr=bars, fmt=marker, color=color, alpha=0.8)
        points.append((median, 100 * share, name))
    score_name = "accuracy, %" if labelled else "other answers than now, %"
    axes.set(xlabel="milliseconds a text, batches of 32", ylabel=score_name, xscale="log")
    low, high = axes.get_xlim()
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.15)
    _label(axes, points)
    return figure


def _label(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write names beside points, from the lowest up, with a distance that keeps them readable."""
    bottom, top = axes.get_ylim()
    step = (top - bottom) / 18
    free = -math.inf
    for x, y, name in sorted(points, key=lambda point: (point[1], point[0])):
        free = max(y, free + step)
        options: dict[str, Any] = {"fontsize": "small", "va": "center"}
        if free > y:
            options["arrowprops"] = {"arrowstyle": "-", "color": "#9aa5b1", "linewidth": 0.6}
        axes.annotate(name, (x, y), (x * 1.06, free), **options)
    axes.set_ylim(bottom, max(top, free + step))
