"""`report.html` of `ponder advise`: the table, the score against seconds, and the texts that change."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from ponder._utils.files import replace_text
from ponder.advice import Advice

__all__ = ["write_page"]


def write_page(path: Path, model: str, advice: Advice) -> None:
    """Write the page of a race."""
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = templates.get_template("advice.html.jinja").render(
        model=model, advice=advice, figure=Markup(_figure(advice)), missing=math.isnan
    )
    replace_text(path, page)


def _figure(advice: Advice) -> str:
    """Draw accuracies, or other answers where there are no labels, against seconds, as SVG."""
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
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]
