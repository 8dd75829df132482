"""How far predictions can be trusted, step by step: reliability, and what overthinking costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ponder._utils.seeds import Band
from ponder._utils.validation import check_int
from ponder.plots.axes import GREY, as_axes, band, explain, legend, next_color, shades, step_ticks
from ponder.plots.protocols import ReliabilityLike, Run
from ponder.plots.seeds import as_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["overthinking", "reliability"]


def reliability(
    trajectories: Run | Sequence[Run],
    step: int | None = None,
    *,
    bins: int = 10,
    ax: Axes | None = None,
    label: str | None = None,
    color: str | None = None,
) -> Axes:
    """Draw accuracy against confidence in bins of equal width, with the expected calibration error (Guo et al. 2017).

    Above the diagonal a head is less sure than it could be, below it is too sure. A dot lies at the mean confidence
    of its bin, its area shows the share of the answers that the bin holds, and empty bins have none.

    Args:
        trajectories: A full-depth run of a classifier with labels, or one a seed: means over the seeds, and for a
            single step ± one standard deviation.
        step: The step to draw, from 1 to N; every step where None, from dark (early) to light.
        bins: Number of bins over [0, 1].
        ax: Where to draw; a new pyplot figure where None.
        label: Name in the legend.
        color: Colour of a single step, any that matplotlib knows; the next that is free where None.

    Raises:
        ArgumentError: No labels, answers that are not classes, no such step, or no bins.
        PonderError: matplotlib is missing.

    Example:
        >>> trajectory = Trajectory(torch.randn(8, 4, 2), None, torch.arange(8), labels=torch.randint(2, (8,)))
        >>> ax = reliability(trajectory, step=4)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('confidence, mean of the bin', 'accuracy of the bin')
    """
    items = as_runs(trajectories)
    if step is not None:
        check_int("step", step, 1, items[0].num_steps, remedy="Steps are counted from 1; None draws them all.")
    steps = range(1, items[0].num_steps + 1) if step is None else [step]
    seen = [item.reliability(bins) for item in items]
    by_step = [[each[n - 1] for each in seen] for n in steps]
    ax = as_axes(ax)
    colors = [next_color(ax, color)] if step is not None else shades(len(steps))
    for n, seeds, each in zip(steps, by_step, colors, strict=True):
        _draw_bins(ax, seeds, each, f"step {n}" if label is None else f"{label}, step {n}", step is not None)
    ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.0, zorder=1)
    ax.set(xlabel="confidence, mean of the bin", ylabel="accuracy of the bin", ylim=(-0.02, 1.02))
    legend(
        ax,
        title=None if len(items) == 1 else f"{len(items)} seeds, mean ± std",
        **({} if len(steps) <= 6 else {"fontsize": 8, "loc": "center left", "bbox_to_anchor": (1.0, 0.5)}),
    )
    return ax


def _draw_bins(ax: Axes, seeds: Sequence[ReliabilityLike], color: Any, label: str, around: bool) -> None:
    """The line of one step; ± one standard deviation where `around`."""
    places, heights = Band.of([each.confidence for each in seeds]), Band.of([each.accuracy for each in seeds])
    ece = Band.of([[each.ece] for each in seeds])
    spread = f" ± {ece.std[0]:.3f}" if ece.seeds > 1 else ""
    full = [place for place, mean in enumerate(heights.mean) if mean == mean]  # NaN: empty in every seed
    x, mean, std = ([values[place] for place in full] for values in (places.mean, heights.mean, heights.std))
    shown = Band(mean, std, heights.seeds if around else 1)
    band(ax, x, shown, color, f"{label}, ECE {ece.mean[0]:.3f}{spread}", marker="", linewidth=1.4)
    shares = [sum(each.count[place] for each in seeds) / sum(sum(each.count) for each in seeds) for place in full]
    ax.scatter(x, mean, [4 + 160 * share for share in shares], color=color, linewidth=0, zorder=2)


def overthinking(
    trajectories: Run | Sequence[Run],
    *,
    ax: Axes | None = None,
    label: str | None = None,
    color: str | None = None,
) -> Axes:
    """Draw what overthinking costs: rows that are right at some step and wrong at the last (Kaya et al. 2019).

    The solid line is the share of rows that are right at step n, the dashed one that of rows right at step n or
    before. At the last step the dashed line is what the best exit of every row would give, and the gap is what
    overthinking costs.

    Args:
        trajectories: A full-depth run of a classifier with labels, or one a seed: mean and ± one standard deviation.
        ax: Where to draw; a new pyplot figure where None.
        label: Name in the legend.
        color: Any matplotlib colour; the next that is free where None.

    Raises:
        ArgumentError: No labels, or answers that are not classes.
        PonderError: matplotlib is missing.

    Example:
        >>> trajectory = Trajectory(torch.randn(8, 4, 2), None, torch.arange(8), labels=torch.randint(2, (8,)))
        >>> ax = overthinking(trajectory, label="palbert")
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('step n', 'share of rows')
    """
    seeds = [item.overthinking() for item in as_runs(trajectories)]
    right, right_by = Band.of([each.right for each in seeds]), Band.of([each.right_by for each in seeds])
    lost = Band.of([[100 * each.lost] for each in seeds])
    num_steps = len(right.mean)
    ax, steps = as_axes(ax), range(1, num_steps + 1)
    chosen = next_color(ax, color)
    band(ax, steps, right_by, chosen, linestyle="--", marker="", gid=None)
    band(ax, steps, right, chosen, right.name(label or "right at step n"))
    ax.plot([num_steps] * 2, [right.mean[-1], right_by.mean[-1]], color=chosen, linewidth=4, alpha=0.5)
    spread = f" ± {lost.std[0]:.1f}" if lost.seeds > 1 else ""
    middle = (right.mean[-1] + right_by.mean[-1]) / 2
    beside: dict[str, Any] = {
        "xytext": (6, 0),
        "textcoords": "offset points",
        "va": "center",
        "color": chosen,
        "fontsize": 9,
    }
    ax.annotate(f"{lost.mean[0]:.1f}{spread} %", (num_steps, middle), **beside)
    explain(ax, "right at step n or before", linestyle="--", linewidth=1.8)
    explain(ax, "right at some step, wrong at the last", linewidth=4, alpha=0.5)
    ax.set(xlabel="step n", ylabel="share of rows")
    step_ticks(ax, num_steps)
    legend(ax)
    return ax
