"""Figures of results as SVG: files, and parts of a report."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ponder.errors import PonderError
from ponder.pages import Figure

__all__ = ["Draw", "new_figure", "panels_as_figure", "save_svg"]

Draw = Callable[..., object]
"""Draws on the axes that it is given as `ax`."""


def new_figure(width: float, height: float) -> Any:
    """An empty figure of matplotlib, in inches.

    Raises:
        PonderError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PonderError("the figure needs matplotlib: pip install 'ponder-torch[plots]'.") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_svg(path: Path, figure: Any) -> None:
    """Write a figure so that text stays text, and two drawings of the same numbers are the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_svg(figure, path.stem), encoding="utf-8")


def panels_as_figure(name: str, caption: str, panels: Mapping[str, Sequence[Draw]]) -> list[Figure]:
    """One figure with a titled panel for each entry, three in a row; none where there are none."""
    if not panels:
        return []
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    drawing = new_figure(5.2 * columns, 4.0 * rows)
    for place, (title, draws) in enumerate(panels.items(), start=1):
        ax = drawing.add_subplot(rows, columns, place, title=title)
        for draw in draws:
            draw(ax=ax)
    return [Figure(name, caption, _svg(drawing, name))]


def _svg(figure: Any, name: str) -> str:
    import matplotlib as mpl  # it made the figure

    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
