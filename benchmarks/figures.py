"""Figures of results as SVG files."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ponder.errors import PonderError

__all__ = ["Draw", "new_figure", "panels", "save_svg", "svg"]

Draw = Callable[[Any], object]
"""Draws on the axes that it is given."""


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of matplotlib, in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PonderError("the figure needs matplotlib: pip install 'ponder-torch[plots]'.") from error
    return Figure(figsize=(width, height), layout="constrained")


def panels(path: Path, named: Mapping[str, Sequence[Draw]]) -> None:
    """Write one figure with a titled panel for each entry, three in a row."""
    columns = min(3, len(named))
    rows = -(-len(named) // columns)
    figure = new_figure(5.2 * columns, 4.0 * rows)
    for place, (title, draws) in enumerate(named.items(), start=1):
        axes = figure.add_subplot(rows, columns, place, title=title)
        for draw in draws:
            draw(axes)
        axes.legend(fontsize="x-small", loc="best")
    save_svg(path, figure)


def save_svg(path: Path, figure: Any) -> None:
    """Write a figure so that text stays text, and two drawings of the same numbers are the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(svg(figure, path.stem), encoding="utf-8")


def svg(figure: Any, name: str) -> str:
    """Return a figure as SVG."""
    import matplotlib as mpl  # it made the figure

    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
