"""Figures of results as SVG files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ponder.errors import PonderError

__all__ = ["new_figure", "save_svg"]


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of matplotlib, in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PonderError(
            "the figure needs matplotlib: pip install 'ponder-torch[cli]'."
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_svg(path: Path, figure: Any, description: str | None = None) -> None:
    """Write a figure with text as text, so that the same numbers always give the same file.

    Args:
        path: The file.
        figure: The figure.
        description: What the file says of itself, in its metadata.
    """
    import matplotlib as mpl  # it made the figure

    text = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Description": description}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure.savefig(text, format="svg", metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines()), encoding="utf-8"
    )
