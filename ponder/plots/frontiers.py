"""Frontiers of a diagnosis: what each policy, a blind choice and the labels give at every mean exit step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ponder.plots.axes import GREY, as_axes, legend, next_color
from ponder.plots.protocols import DiagnosisLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["frontiers"]

_STYLES = {"blind": "--", "oracle": ":"}


def frontiers(diagnosis: DiagnosisLike, *, ax: Axes | None = None) -> Axes:
    """Draw the score against the mean exit step, with a line for each frontier of a diagnosis.

    Policies are solid; blind is dashed and the oracle dotted, both grey; encoders that were cut and trained so are
    crosses; small dots are the scores of the steps themselves.

    Args:
        diagnosis: What `ponder.diagnose` gave.
        ax: Where to draw; a new pyplot figure where None.

    Raises:
        PonderError: matplotlib is missing.

    Example:
        >>> trajectory = ponder.Trajectory(
        ...     torch.randn(40, 4, 2), None, torch.arange(40), labels=torch.randint(2, (40,))
        ... )
        >>> frontiers(ponder.diagnose(trajectory)).get_xlabel()
        'mean exit step'
    """
    ax = as_axes(ax)
    for name, frontier in diagnosis.frontiers.items():
        if name in _STYLES:
            ax.plot(frontier.steps, frontier.scores, color=GREY, linestyle=_STYLES[name], linewidth=1.5, label=name)
        elif name == "static":
            ax.plot(frontier.steps, frontier.scores, "x", color=GREY, markersize=7, label="cut and trained so")
        else:
            ax.plot(frontier.steps, frontier.scores, color=next_color(ax), gid="ponder-series", label=name)
    steps = range(1, len(diagnosis.scores) + 1)
    ax.plot(steps, diagnosis.scores, ".", color=GREY, markersize=5)
    ax.set(xlabel="mean exit step", ylabel=diagnosis.metric.replace("_", " "))
    legend(ax)
    return ax
