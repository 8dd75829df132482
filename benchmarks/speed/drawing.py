"""A picture of a section: every figure as a point with its range, and its goal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["draw"]

REACHED, MISSED, NO_GOAL = "#0072B2", "#D55E00", "#666666"


def draw(told: Sequence[dict[str, Any]], title: str, path: Path) -> bool:
    """Write `path`, an SVG file; False, and no file, where nothing was measured.

    Args:
        told: Figures as `figures.figure` gives them.
        title: Above the picture.
        path: The file.
    """
    shown = [each for each in told if each["value"] is not None and each["value"] > 0]
    if not shown:
        return False
    picture = Figure(figsize=(9.0, 1.2 + 0.34 * len(shown)), layout="constrained")
    FigureCanvasSVG(picture)
    axes = picture.add_subplot()
    for row, each in enumerate(shown):
        color = {True: REACHED, False: MISSED, None: NO_GOAL}[each["kept"]]
        axes.plot([each["low"], each["high"]], [row, row], color=color, linewidth=2, alpha=0.5)
        axes.plot([each["value"]], [row], "o", color=color)
        for goal in (each["at_least"], each["at_most"]):
            if goal is not None:
                axes.plot([goal], [row], "|", color="black", markersize=12)
    axes.set_yticks(range(len(shown)), [textwrap.shorten(f"{e['case']}: {e['figure']}", 90) for e in shown], fontsize=7)
    axes.invert_yaxis()
    values = [value for each in shown for value in (each["low"], each["high"])]
    if max(values) > 10 * max(min(values), 1e-9):
        axes.set_xscale("log")
    axes.axvline(1.0, color="#BBBBBB", linewidth=0.8, zorder=0)
    axes.set_title(f"{title}: medians, ranges, goals (|)", fontsize=9)
    axes.tick_params(axis="x", labelsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, format="svg", metadata={"Date": None})
    return True
