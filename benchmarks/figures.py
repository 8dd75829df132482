"""Figures of results as SVG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ponder.errors import PonderError

__all__ = ["new_figure", "save_svg"]


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
    import matplotlib as mpl  # it made the figure

    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
