"""When rows leave: the posterior over the steps, and the exits themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ponder._utils.numerics import exit_shares
from ponder._utils.seeds import Band
from ponder.distributions import StepDistribution
from ponder.errors import ArgumentError
from ponder.plots.axes import GREY, as_axes, band, legend, next_color, shades, step_ticks
from ponder.plots.protocols import Run
from ponder.plots.seeds import as_runs
from ponder.priors.base import Prior

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["exit_histogram", "posterior"]


def posterior(
    trajectories: Run | Sequence[Run],
    prior: Prior | StepDistribution | None = None,
    *,
    ax: Axes | None = None,
    label: str | None = None,
    color: str | None = None,
) -> Axes:
    """Draw the mean posterior E_x[p(n|x)] over the steps (the PALBERT paper, Figure 2, here without smoothing).

    Args:
        trajectories: A full-depth run with hazards, or one a seed: mean and ± one standard deviation over the seeds.
        prior: Drawn beside it, dashed.
        ax: Where to draw; a new pyplot figure where None.
        label: Name in the legend.
        color: Any matplotlib colour; the next that is free where None.

    Raises:
        ArgumentError: No rows, different numbers of steps, hazards that are not numbers.
        PonderError: No hazards were recorded, or matplotlib is missing.

    Example:
        >>> trajectory = Trajectory(torch.randn(8, 4, 2), torch.randn(8, 4), torch.arange(8))
        >>> ax = posterior(trajectory, ponder.priors.Geometric(0.3), label="RTE")
        >>> ax.get_ylabel()
        'mean probability of exit, E[p(n|x)]'
    """
    items = as_runs(trajectories)
    means = [item.halting.pmf.detach().cpu().double().mean(0) for item in items]
    if not all(bool(mean.isfinite().all()) for mean in means):
        raise ArgumentError(
            "trajectories", expected="hazards that are numbers", got="NaN", remedy="Look for NaN in the model's states."
        )
    num_steps = items[0].num_steps
    expected = None if prior is None else _prior_pmf(prior, num_steps)
    ax, steps = as_axes(ax), range(1, num_steps + 1)
    values = Band.of([mean.tolist() for mean in means])
    band(ax, steps, values, next_color(ax, color), values.name(label or "posterior"))
    if expected is not None:
        ax.plot(steps, expected, color=GREY, linestyle="--", marker="s", markersize=3.5, linewidth=1.2, label="prior")
    ax.set(xlabel="step n", ylabel="mean probability of exit, E[p(n|x)]")
    ax.set_ylim(bottom=0, auto=None)  # None: what is drawn later may still raise the top
    step_ticks(ax, num_steps)
    legend(ax)
    return ax


def _prior_pmf(prior: Prior | StepDistribution, num_steps: int) -> list[float]:
    pmf = (prior(num_steps) if isinstance(prior, Prior) else prior).pmf.detach()
    if pmf.shape != (num_steps,):
        raise ArgumentError(
            "prior",
            expected=f"one distribution over {num_steps} steps",
            got=f"shape {tuple(pmf.shape)}",
            remedy="Pass the prior itself, priors.Geometric(0.1), say.",
        )
    return [float(p) for p in pmf]


def exit_histogram(
    exit_steps: Tensor | Sequence[int] | Sequence[Tensor] | Sequence[Sequence[int]],
    num_steps: int,
    by: Tensor | Sequence[object] | None = None,
    *,
    ax: Axes | None = None,
    label: str | None = None,
) -> Axes:
    """Draw how many rows exit at each step: shares of the rows, of each group where there are groups.

    Args:
        exit_steps: Exit steps from 1 to N, `(batch,)`, or one such a seed: mean bars, and ± one standard deviation.
        num_steps: N.
        by: A group for each row, `(batch,)`, the same rows in every seed: a difficulty, say. Groups are sorted.
        ax: Where to draw; a new pyplot figure where None.
        label: Title of the legend: what the groups are, or whose exits these are.

    Raises:
        ArgumentError: No rows, a step that is not in 1..N, or groups that do not match the rows.
        PonderError: matplotlib is missing.

    Example:
        >>> ax = exit_histogram([1, 2, 2, 4], 4, by=["easy", "easy", "hard", "hard"], label="difficulty")
        >>> sum(float(bar.get_height()) for bar in ax.containers[0])
        1.0
    """
    runs = _runs(exit_steps, num_steps)
    groups = _groups(by, runs)
    ax = as_axes(ax)
    ax.grid(visible=False, axis="x")
    colors = [next_color(ax)] if by is None else shades(len(groups))
    width = 0.8 / len(groups)
    for place, (name, rows) in enumerate(groups.items()):
        chosen = [run if rows is None else run[rows] for run in runs]
        shares = Band.of([exit_shares(run, num_steps) for run in chosen])
        x = [step - 0.4 + width * (place + 0.5) for step in range(1, num_steps + 1)]
        mean = sum(run.double().mean().item() for run in chosen) / len(chosen)
        entry = f"{name}: mean exit step {mean:.2f}"
        errors = shares.std if shares.seeds > 1 else None
        ax.bar(x, shares.mean, width * 0.92, yerr=errors, color=colors[place], label=entry, ecolor=GREY)
    ax.set(xlabel="exit step", ylabel="share of rows" if by is None else "share of the group's rows")
    ax.set_ylim(0, min(ax.get_ylim()[1], 1.02), auto=None)  # shares end at 1, though an error bar may not
    step_ticks(ax, num_steps)
    legend(ax, title=shares.name(label), loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=1 if len(groups) < 3 else 2)
    return ax


def _runs(exit_steps: Tensor | Sequence[object], num_steps: int) -> list[Tensor]:
    """The exit steps of each seed, `(batch,)` long."""
    try:
        rows = [torch.as_tensor(each) for each in exit_steps]
        runs = [torch.stack(rows)] if all(row.dim() == 0 for row in rows) else rows
    except (TypeError, ValueError, RuntimeError):
        runs = []
    for run in runs or [torch.empty(0)]:
        whole = run.dim() == 1 and len(run) and not run.is_floating_point()
        if not whole or int(run.min()) < 1 or int(run.max()) > num_steps:
            raise ArgumentError(
                "exit_steps",
                expected=f"whole numbers in 1..{num_steps}, (batch,), or one such sequence a seed",
                got=repr(run.tolist() if runs else exit_steps)[:80],
                remedy="Pass model(x).exit_step, and the number of steps of that model.",
            )
    return [run.detach().cpu().long() for run in runs]


def _groups(by: Tensor | Sequence[object] | None, runs: Sequence[Tensor]) -> dict[object, Tensor | None]:
    """The rows of each group, sorted by its name; all rows as one where there are no groups."""
    if by is None:
        return {"all rows": None}
    names = by.tolist() if isinstance(by, Tensor) else list(by)
    if any(len(run) != len(names) for run in runs):
        raise ArgumentError(
            "by",
            expected=f"one group for each of {len(runs[0])} rows, the same rows in every seed",
            got=f"{len(names)} groups, and {[len(run) for run in runs]} rows",
            remedy="Pass the groups in the order of the rows.",
        )
    try:
        order = sorted(set(names))
    except TypeError:
        order = list(dict.fromkeys(names))
    rows = {name: [row for row, other in enumerate(names) if other == name] for name in order}
    if sum(map(len, rows.values())) < len(names):  # NaN is no group: it is not even itself
        raise ArgumentError("by", expected="a group for each row", got="NaN", remedy="Name the group of those rows.")
    return {name: torch.tensor(places, dtype=torch.long) for name, places in rows.items()}
