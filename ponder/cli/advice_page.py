"""`report.html` of `ponder advise`: the table, other answers against seconds, and the texts that change."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
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
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes: Any = figure.subplots()
    for way in advice.ways:
        median, low, high = (1e3 * second for second in way.seconds)
        wins = way is advice.winner
        axes.errorbar(
            median,
            100 * way.disagreement,
            xerr=[[median - low], [high - median]],
            fmt="D" if wins else "o",
            label=way.name + (" (take this)" if wins else ""),
        )
    axes.set(xlabel="milliseconds a text, batches of 32", ylabel="other answers than now, %")
    axes.set_xscale("log")
    axes.legend(fontsize="small")
    stream = io.StringIO()
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(stream)
    return stream.getvalue()[stream.getvalue().index("<svg") :]
