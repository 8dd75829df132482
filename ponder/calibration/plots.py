"""Figures (matplotlib, the extra `plots`): each takes one run, or one a seed, and returns the axes.

Seeds are drawn as their mean and ± one standard deviation. Everywhere `ax` is where to draw (a new pyplot figure where
None), `label` the name in the legend, and `color` any of matplotlib (the next that is free where None).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ponder._utils.arrays import softmax
from ponder.calibration.diagnosing import Diagnosis
from ponder.calibration.records import Floats, Record, halting_distribution, step_outputs
from ponder.calibration.sweeps import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "exit_histogram",
    "frontiers",
    "halting",
    "reliability",
    "score_by_speed_up",
    "score_by_threshold",
]

_GREY = "#595959"
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: safe for colour blindness
_SERIES = "ponder-series"  # marks the main line of each series, so that the next call takes the next colour


def score_by_threshold(
    curves: Curve | Sequence[Curve], *, ax: Axes | None = None, label: str | None = None, color: str | None = None
) -> Axes:
    """Draw the score of sweeps over one grid against the threshold (the PALBERT paper, Figure 3); full depth is dotted.

    Example:
        >>> ax = ponder.calibration.plots.score_by_threshold(trajectory.sweep(policies.Confidence))
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('threshold', 'accuracy')
    """
    items, ax = _listed(curves), _axes(ax)
    values = [point.threshold for point in items[0].points]
    chosen = _band(ax, values, [[point.score for point in curve.points] for curve in items], label, color)
    ax.axhline(float(np.mean([curve.full_depth.score for curve in items])), color=chosen, linestyle=":", linewidth=1.5)
    return _finished(ax, items[0].threshold, items[0].metric)


def score_by_speed_up(
    curves: Mapping[str, Curve | Sequence[Curve]],
    *,
    by: Literal["steps", "cost"] = "steps",
    baseline: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the score of sweeps, by name, against their speed-up (the PALBERT paper, Figure 4).

    The speed-up is in steps, N over the mean exit step, or in the costs that the sweeps were given. Diamonds are full
    depth, `baseline` is the score of a model without exits. Seeds do not share their speed-ups, so they are compared at
    equal cost, over the costs that all of them reach: between two points of a seed its score is linear in the cost,
    which is what a coin between the two policies gives.

    Example:
        >>> ax = ponder.calibration.plots.score_by_speed_up({"sure": trajectory.sweep(policies.Confidence)})
        >>> ax.get_xlabel()
        'speed-up in steps'
    """
    ax, field, metric = _axes(ax), "mean_exit_step" if by == "steps" else "cost", ""
    for name, each in curves.items():
        items = _listed(each)
        lines = [_by_cost(curve, field) for curve in items]
        low, high = max(cost[0] for cost, _ in lines), min(cost[-1] for cost, _ in lines)
        at = np.unique(np.concatenate([np.linspace(low, high, 65), *(cost for cost, _ in lines)]))
        at = at[(at >= low) & (at <= high)]
        chosen = _band(ax, 1.0 / at, [np.interp(at, cost, score) for cost, score in lines], name, marker="")
        for cost, score in lines:
            ax.plot(1.0 / cost, score, ".", color=chosen, markersize=4, alpha=1.0 if len(lines) == 1 else 0.3)
        full = np.mean([curve.full_depth.score for curve in items])
        ax.plot([1.0], [full], "D", color=chosen, markersize=6, markerfacecolor="white")
        metric = items[0].metric
    if baseline is not None:
        ax.axhline(baseline, color=_GREY, linestyle="--", linewidth=1.2, label="baseline")
    ax.xaxis.set_major_formatter("{x:g}×")
    return _finished(ax, f"speed-up in {by}", metric)


def frontiers(diagnosis: Diagnosis, *, ax: Axes | None = None) -> Axes:
    """Draw the score against the mean cost, with a line for each frontier of a diagnosis.

    Policies are solid; blind is dashed and the oracle dotted, both grey.

    Example:
        >>> ponder.calibration.plots.frontiers(ponder.diagnose(trajectory)).get_ylabel()
        'accuracy'
    """
    ax, styles = _axes(ax), {"blind": "--", "oracle": ":"}
    for name, line in diagnosis.frontiers.items():
        if name in styles:
            ax.plot(line.costs, line.scores, styles[name], color=_GREY, linewidth=1.5, label=name)
        else:
            ax.plot(line.costs, line.scores, color=_next_color(ax), gid=_SERIES, label=name)
    return _finished(ax, "mean cost", diagnosis.metric)


def exit_histogram(
    exit_steps: Any, num_steps: int, by: Any = None, *, ax: Axes | None = None, label: str | None = None
) -> Axes:
    """Draw the shares of rows that exit at each step, `(batch,)`, of each group where `by` has a group for each row.

    Example:
        >>> plots = ponder.calibration.plots
        >>> ax = plots.exit_histogram([1, 2, 2, 4], 4, by=["easy", "easy", "hard", "hard"], label="difficulty")
        >>> sum(float(bar.get_height()) for bar in ax.containers[0])
        1.0
    """
    ax, steps = _axes(ax), np.asarray(exit_steps)
    groups = np.full(len(steps), "all rows") if by is None else np.asarray(by)
    names = np.unique(groups)
    width = 0.8 / len(names)
    for place, (name, color) in enumerate(zip(names, _shades(len(names), ax), strict=True)):
        rows = steps[groups == name]
        shares = np.bincount(rows, minlength=num_steps + 1)[1:] / len(rows)
        x = np.arange(1, num_steps + 1) - 0.4 + width * (place + 0.5)
        ax.bar(x, shares, width * 0.92, color=color, label=f"{name}: mean exit step {rows.mean():.2f}")
    return _finished(ax, "exit step", "share of rows" if by is None else "share of the group's rows", title=label)


def halting(
    trajectories: Record | Sequence[Record],
    prior: Iterable[float] | None = None,
    *,
    ax: Axes | None = None,
    label: str | None = None,
    color: str | None = None,
) -> Axes:
    """Draw the mean halting distribution E_x[p(n|x)] over the steps (the PALBERT paper, Figure 2).

    The probabilities of a prior, ``model.prior(num_steps).pmf``, are drawn beside it, dashed.

    Example:
        >>> record = Trajectory(torch.randn(8, 4, 2), torch.randn(8, 4), torch.arange(8))
        >>> ponder.calibration.plots.halting(record, [0.4, 0.3, 0.2, 0.1]).get_xlabel()
        'step'
    """
    ax, means = _axes(ax), [halting_distribution(item).mean(0) for item in _listed(trajectories)]
    steps = np.arange(1, len(means[0]) + 1)
    _band(ax, steps, means, label or "posterior", color)
    if prior is not None:
        ax.plot(steps, [float(p) for p in prior], "s--", color=_GREY, markersize=3.5, linewidth=1.2, label="prior")
    ax.set_ylim(bottom=0, auto=None)
    return _finished(ax, "step", "mean probability of exit")


def reliability(
    trajectory: Record, step: int | None = None, *, bins: int = 10, ax: Axes | None = None, label: str | None = None
) -> Axes:
    """Draw accuracy against confidence in bins of equal width, with the expected calibration error (Guo et al. 2017).

    Above the diagonal a head is less sure than it could be, below it is too sure. Every step is drawn where `step` is
    None, from dark (early) to light.

    Example:
        >>> ax = ponder.calibration.plots.reliability(trajectory, step=4)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('confidence', 'accuracy')
    """
    ax, right, outputs = _axes(ax), trajectory.correct(), step_outputs(trajectory)
    steps = range(1, trajectory.num_steps + 1) if step is None else [step]
    for n, color in zip(steps, _shades(len(steps), ax), strict=True):
        sure, accuracy, error = reliability_bins(softmax(outputs[n - 1]).max(-1), right[:, n - 1], bins)
        name = f"step {n}" if label is None else f"{label}, step {n}"
        ax.plot(sure, accuracy, "o-", color=color, markersize=4, label=f"{name}, ECE {error:.3f}")
    ax.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1.0, zorder=1)
    return _finished(ax, "confidence", "accuracy")


def reliability_bins(confidence: Floats, right: Any, bins: int) -> tuple[Floats, Floats, float]:
    """Return mean confidence and accuracy of the bins that hold any row, and Σ_m |B_m|/n · |acc(B_m) − conf(B_m)|.

    Bin m of M holds the confidences in ((m − 1)/M, m/M], and the first holds 0 too (Guo et al. 2017, Eq. 3).
    """
    place = np.clip(np.ceil(confidence * bins).astype(np.intp) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    full = count > 0
    sure, accurate = (np.bincount(place, each, bins)[full] / count[full] for each in (confidence, right * 1.0))
    return sure, accurate, float((count[full] * np.abs(accurate - sure)).sum() / len(confidence))


def _by_cost(curve: Curve, field: str) -> tuple[Floats, Floats]:
    """Return the costs of a curve relative to full depth, rising, and the mean score at each."""
    cost = np.array([getattr(point, field) for point in curve.points]) / getattr(curve.full_depth, field)
    unique, place = np.unique(cost.round(12), return_inverse=True)
    return unique, np.bincount(place, [point.score for point in curve.points]) / np.bincount(place)


def _listed(items: Any) -> list[Any]:
    """Return one item, or one a seed, as a list."""
    return list(items) if isinstance(items, list | tuple) else [items]


def _axes(ax: Axes | None) -> Axes:
    """Return `ax`, or the axes of a new pyplot figure, which notebooks and `plt.show()` display; without clutter."""
    import matplotlib.pyplot as plt

    ax = plt.subplots(figsize=(6.0, 4.0), layout="constrained")[1] if ax is None else ax
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def _next_color(ax: Axes) -> str:
    return _COLORS[sum(line.get_gid() == _SERIES for line in ax.lines) % len(_COLORS)]


def _shades(count: int, ax: Axes) -> list[Any]:
    """Return colours for what has an order, from dark to light."""
    import matplotlib as mpl

    viridis = mpl.colormaps["viridis"]
    return [_next_color(ax)] if count == 1 else [viridis(0.9 * place / (count - 1)) for place in range(count)]


def _band(
    ax: Axes, x: Any, series: Sequence[Any], label: str | None, color: str | None = None, marker: str = "o"
) -> str:
    """Draw a line through the means, and ± one standard deviation where there are several seeds; return its colour."""
    chosen, values = color or _next_color(ax), np.asarray(series, dtype=np.float64)
    mean, seeds = values.mean(0), len(values)
    name = label if seeds == 1 else f"{label or 'mean'} (mean ± std, {seeds} seeds)"
    ax.plot(x, mean, color=chosen, label=name, marker=marker if len(mean) <= 30 else "", markersize=4.5, gid=_SERIES)
    if seeds > 1:
        std = values.std(0, ddof=1)
        ax.fill_between(x, mean - std, mean + std, color=chosen, alpha=0.2, linewidth=0)
    return chosen


def _finished(ax: Axes, xlabel: str, ylabel: str, title: str | None = None) -> Axes:
    """Label the axes, with ticks on whole steps, and draw the legend."""
    ax.set(xlabel=xlabel.replace("_", " "), ylabel=ylabel.replace("_", " "))
    if xlabel.endswith("step"):
        ax.locator_params(axis="x", integer=True)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="best", fontsize=9, framealpha=0.8, edgecolor="none", title=title)
    return ax
