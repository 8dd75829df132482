"""What all figures share: axes, colours, ticks and legends. Nothing here changes matplotlib's global settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ponder._utils.seeds import Band
from ponder.errors import PonderError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["GREY", "as_axes", "band", "explain", "legend", "next_color", "shades", "step_ticks", "whole_ticks"]

GREY = "#595959"
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: safe for colour blindness
_SERIES = "ponder-series"  # marks the main line of each series, so that the next call takes the next colour
_MANY = 30  # points from which markers would run together


def as_axes(ax: Axes | None) -> Axes:
    """`ax`, or the axes of a new pyplot figure, which notebooks and `plt.show()` display; both without clutter.

    Raises:
        PonderError: matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise PonderError("ponder.plots needs matplotlib: pip install 'ponder-torch[plots]'.") from error
    if ax is None:
        ax = plt.subplots(figsize=(6.0, 4.0), layout="constrained")[1]
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def next_color(ax: Axes, color: str | None = None) -> str:
    """`color`, or the first that no series on the axes has taken."""
    return color or _COLORS[sum(line.get_gid() == _SERIES for line in ax.lines) % len(_COLORS)]


def shades(count: int) -> list[Any]:
    """Colours for what has an order, from dark to light; also told apart in grey."""
    import matplotlib as mpl

    return [mpl.colormaps["viridis"](0.9 * place / max(count - 1, 1)) for place in range(count)]


def band(ax: Axes, x: Sequence[float], values: Band, color: Any, label: str | None = None, **options: Any) -> None:
    """Draw a line through the means, and ± one standard deviation around it where there are several seeds."""
    marker = "o" if len(x) <= _MANY else ""
    options = {"marker": marker, "markersize": 4.5, "linewidth": 1.8, "gid": _SERIES, **options}
    ax.plot(x, values.mean, color=color, label=label, **options)
    if values.seeds > 1:
        ax.fill_between(x, values.low, values.high, color=color, alpha=0.2, linewidth=0)


def explain(ax: Axes, label: str, **options: Any) -> None:
    """Add a legend entry, once on the axes, for what is drawn in the colour of each series."""
    if label not in ax.get_legend_handles_labels()[1]:
        ax.plot([], [], color=GREY, label=label, **options)


def legend(ax: Axes, **options: Any) -> None:
    """Draw a legend, where there is something to tell."""
    if ax.get_legend_handles_labels()[1]:
        # "best" is said, though it is the default: matplotlib warns of the default where a busy machine is slow at it.
        ax.legend(
            **{"loc": "best", "fontsize": 9, "framealpha": 0.8, "edgecolor": "none", "alignment": "left", **options}
        )


def step_ticks(ax: Axes, num_steps: int) -> None:
    """Make a horizontal axis of the steps 1..N (the greatest N on these axes), with ticks on whole steps."""
    num_steps = max(num_steps, int(ax.dataLim.x1))
    every = -(-num_steps // 16)
    ticks = [step for step in range(1, num_steps + 1) if step == 1 or (step % every == 0 and num_steps - step >= every)]
    ax.set_xticks([*ticks, num_steps] if num_steps > 1 and ticks[-1] != num_steps else ticks)
    ax.set_xlim(0.5, num_steps + 0.5)


def whole_ticks(ax: Axes) -> None:
    """Put ticks on whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
