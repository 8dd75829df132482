"""What exits earn and cost: the score against the threshold, and against the speed-up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from ponder._utils.seeds import Band, at_equal_costs, relative
from ponder._utils.validation import check_choice
from ponder.errors import ArgumentError
from ponder.plots.axes import GREY, as_axes, band, explain, legend, next_color, whole_ticks
from ponder.plots.protocols import CurveLike
from ponder.plots.seeds import as_items, same

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["score_by_speed_up", "score_by_threshold"]


def score_by_threshold(
    curves: CurveLike | Sequence[CurveLike],
    *,
    ax: Axes | None = None,
    label: str | None = None,
    color: str | None = None,
) -> Axes:
    """Draw the score against the threshold of a policy, q say (the PALBERT paper, Figure 3); full depth is dotted.

    Args:
        curves: A sweep, or one a seed over the same grid: mean and ± one standard deviation over the seeds.
        ax: Where to draw; a new pyplot figure where None.
        label: Name in the legend.
        color: Any matplotlib colour; the next that is free where None.

    Raises:
        ArgumentError: Scores that are NaN (no labels), or curves with other thresholds, grids or scores.
        PonderError: matplotlib is missing.

    Example:
        >>> trajectory = ponder.Trajectory(
        ...     torch.randn(8, 4, 2), torch.randn(8, 4), torch.arange(8), labels=torch.randint(2, (8,))
        ... )
        >>> ax = score_by_threshold(trajectory.sweep(ponder.policies.Quantile), label="palbert")
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('q', 'accuracy')
    """
    items = _scored("curves", curves)
    same("curves", "threshold", items, lambda curve: curve.threshold)
    same("curves", "grid", items, lambda curve: tuple(point.threshold for point in curve.points))
    values = [point.threshold for point in items[0].points]
    full_depth = Band.of([[curve.full_depth.score] for curve in items]).mean[0]
    ax = as_axes(ax)
    chosen = next_color(ax, color)
    scores = Band.of([[point.score for point in curve.points] for curve in items])
    band(ax, values, scores, chosen, scores.name(label))
    ax.axhline(full_depth, color=chosen, linestyle=":", linewidth=1.5)
    explain(ax, "full depth", linestyle=":", linewidth=1.5)
    ax.set(xlabel=_words(items[0].threshold), ylabel=_words(items[0].metric))
    if all(value == int(value) for value in values) and max(values) > 1:
        whole_ticks(ax)
    legend(ax)
    return ax


def score_by_speed_up(
    curves: Mapping[str, CurveLike | Sequence[CurveLike]],
    *,
    by: Literal["steps", "cost"] = "steps",
    baseline: float | Sequence[float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the score against the speed-up, for several policies or models (the PALBERT paper, Figure 4).

    Dots are what was measured, diamonds full depth. Seeds do not share their speed-ups, even where they share the
    threshold, so they are compared at equal cost: the line is the mean over the seeds, and the band ± one standard
    deviation, over the costs that all of them reach. Between two dots of a seed its score is linear in the cost,
    which is what mixing the two policies at random gives where the score is a mean over rows.

    Args:
        curves: Sweeps by name: one, or one a seed.
        by: Speed-up in steps, N over the mean exit step, or in the costs that the sweeps were given.
        baseline: Score of a model without exits, or one a seed: a horizontal line.
        ax: Where to draw; a new pyplot figure where None.

    Raises:
        ArgumentError: No curves, scores that are NaN (no labels) or not the same, or seeds that share no cost.
        PonderError: matplotlib is missing.

    Example:
        >>> trajectory = ponder.Trajectory(
        ...     torch.randn(8, 4, 2), torch.randn(8, 4), torch.arange(8), labels=torch.randint(2, (8,))
        ... )
        >>> both = {"Q-exit": ponder.policies.Quantile, "patience": ponder.policies.Patience}
        >>> ax = score_by_speed_up({name: trajectory.sweep(policy) for name, policy in both.items()})
        >>> ax.get_xlabel()
        'speed-up in steps, N / mean exit step'
    """
    check_choice("by", by, ("steps", "cost"))
    named = {name: _scored(f"curves[{name!r}]", each) for name, each in curves.items()}
    if not named:
        raise ArgumentError("curves", expected="at least one curve", got="none", remedy="Pass {'Q-exit': curve}.")
    same("curves", "score", [curve for each in named.values() for curve in each], lambda curve: curve.metric)
    lines = {name: _Line.of(name, each, by) for name, each in named.items()}
    level = None if baseline is None else _level(baseline)
    ax = as_axes(ax)
    for name, line in lines.items():
        line.draw(ax, name)
    if level is not None:
        ax.axhline(level.mean[0], color=GREY, linestyle="--", linewidth=1.2, label=level.name("baseline"))
        ax.axhspan(level.low[0], level.high[0], color=GREY, alpha=0.12, linewidth=0)
    explain(ax, "full depth", marker="D", markersize=6, markerfacecolor="white", linestyle="")
    words = "steps, N / mean exit step" if by == "steps" else "cost, full depth / mean cost"
    ax.set(xlabel=f"speed-up in {words}", ylabel=_words(next(iter(named.values()))[0].metric))
    ax.xaxis.set_major_formatter("{x:g}×")
    legend(ax)
    return ax


class _Line:
    """A line of a figure: what is drawn under one name.

    Args:
        dots: Speed-ups and scores of the points of each seed.
        speed_ups: The speed-ups at which the seeds are compared.
        scores: Scores over the seeds at these speed-ups.
        full_depth: Score of full depth, over the seeds.
    """

    def __init__(
        self, dots: list[tuple[list[float], list[float]]], speed_ups: list[float], scores: Band, full_depth: Band
    ) -> None:
        self.dots, self.speed_ups, self.scores, self.full_depth = dots, speed_ups, scores, full_depth

    @classmethod
    def of(cls, name: str, curves: Sequence[CurveLike], by: Literal["steps", "cost"]) -> _Line:
        field = "mean_exit_step" if by == "steps" else "cost"
        costs = [  # relative to full depth, so that models of other depths compare
            relative([getattr(point, field) for point in curve.points], getattr(curve.full_depth, field))
            for curve in curves
        ]
        scores = [[point.score for point in curve.points] for curve in curves]
        at, compared = at_equal_costs(f"curves[{name!r}]", costs, scores)
        return cls(
            [([1 / cost for cost in each], score) for each, score in zip(costs, scores, strict=True)],
            [1 / cost for cost in at],
            compared,
            Band.of([[curve.full_depth.score] for curve in curves]),
        )

    def draw(self, ax: Axes, name: str) -> None:
        color, several = next_color(ax), self.scores.seeds > 1
        band(ax, self.speed_ups, self.scores, color, self.scores.name(name), marker="")
        for speed_ups, scores in self.dots:
            size, alpha = (3.0, 0.25) if several or len(scores) > 30 else (4.5, 1.0)
            ax.plot(speed_ups, scores, color=color, linestyle="", marker="o", markersize=size, alpha=alpha, mew=0)
        errors = self.full_depth.std if several else None
        ax.errorbar([1.0], self.full_depth.mean, errors, color=color, marker="D", markersize=6, mfc="white", zorder=3)


def _level(baseline: float | Sequence[float]) -> Band:
    scores = [baseline] if isinstance(baseline, int | float) else list(baseline)
    if not scores or not all(map(math.isfinite, scores)):
        raise ArgumentError("baseline", expected="scores", got=scores, remedy="Leave it out where there is none.")
    return Band.of([[score] for score in scores])


def _scored(argument: str, curves: CurveLike | Sequence[CurveLike]) -> list[CurveLike]:
    """Curves of one score, with points that all have one."""
    items: list[CurveLike] = as_items(argument, curves, CurveLike, "Curve")
    same(argument, "score", items, lambda curve: curve.metric)
    for curve in items:
        if not curve.points or not all(math.isfinite(point.score) for point in (*curve.points, curve.full_depth)):
            raise ArgumentError(
                argument,
                expected="points whose scores are numbers",
                got="NaN or infinity" if curve.points else "no points",
                remedy="Record labels: model.unroll(inputs, labels=labels).sweep(…).",
            )
    return items


def _words(name: str) -> str:
    return name.replace("_", " ")
