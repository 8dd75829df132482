"""The paper's Figures 2, 3 and 4: one panel a task or a recipe, from what the results hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch

from benchmarks.figures import Draw, panels_as_figure
from benchmarks.glue.curves import read_curve
from benchmarks.glue.report.groups import Group, Groups, by_task
from benchmarks.glue.results import Result
from ponder import Trajectory, plots, recipes
from ponder._utils.numerics import interpolate
from ponder.analysis.sweeps import Curve, Point
from ponder.errors import ArgumentError
from ponder.pages import Figure

_HAZARD = 1e-6  # a mean posterior of exactly 0 or 1 has no logit


def posteriors(groups: Groups, prefix: str) -> list[Figure]:
    """Figure 2: the mean posterior E[p(n|x)] over dev, a panel for each recipe with hazards, a line for each task."""
    panels: dict[str, list[Draw]] = {}
    for task, shown in by_task(groups):
        for group in shown:
            if all(split["halting"] for run in group.runs for split in run.reported):
                panels.setdefault(group.label, []).append(
                    partial(plots.posterior, [_of_halting(run) for run in group.runs], label=task)
                )
    for name, draws in panels.items():
        run = next(group.runs[0] for (label, _), group in groups.items() if label == name)
        made = recipes.get(run["recipe"], **run["config"]["recipe_options"]).for_steps(run["num_steps"])
        draws[-1] = partial(draws[-1], prior=made.prior)
    caption = "Mean posterior E[p(n|x)] over dev (Figure 2 of the PALBERT paper, which takes train); dashed: the prior."
    return panels_as_figure(f"{prefix}-posterior", caption, panels)


def by_threshold(groups: Groups, prefix: str) -> list[Figure]:
    """Figure 3: the score against Q-exit's q, for the recipes whose policy it is."""
    panels: dict[str, list[Draw]] = {}
    for task, shown in by_task(groups):
        for group in shown:
            if group.own_policy == "quantile" and (curves := _curves(group)):
                panels.setdefault(task, []).append(
                    partial(plots.score_by_threshold, on_one_grid(curves), label=group.label)
                )
    caption = "Score against the threshold q of Q-exit (as Figure 3 of the PALBERT paper); dotted: full depth."
    return panels_as_figure(f"{prefix}-score-by-q", caption, panels)


def by_speed_up(groups: Groups, prefix: str, by: Literal["steps", "cost"] = "steps") -> list[Figure]:
    """Figure 4: the score against the speed-up in steps or FLOPs, each recipe with its own policy."""
    panels: dict[str, list[Draw]] = {}
    for task, shown in by_task(groups):
        curves = {group.label: found for group in shown if (found := _curves(group))}
        vanilla = groups.get(("vanilla", task))
        if curves:
            level = None if vanilla is None else [score / 100 for score in vanilla.scores]
            panels[task] = [partial(_lines, curves, by=by, baseline=level)]
    name = "steps" if by == "steps" else "FLOPs"
    of_mean = "" if by == "steps" else " (every example at the mean cost of its exit)"
    caption = (
        f"Score against speed-up in {name}{of_mean}, each recipe with its own policy, "
        "whose threshold is varied (as Figure 4); dashed: vanilla."
    )
    return panels_as_figure(f"{prefix}-score-by-{name.lower()}", caption, panels)


def _of_halting(run: Result) -> Trajectory:
    """A trajectory of one row whose halting distribution is the mean one of the run."""
    pmf = torch.tensor([split["halting"] for split in run.reported], dtype=torch.float64).mean(0, keepdim=True)
    before = 1.0 - pmf.cumsum(1) + pmf
    hazards = (pmf / before.clamp_min(_HAZARD)).clamp(_HAZARD, 1 - _HAZARD)
    return Trajectory(torch.zeros(1, pmf.shape[1], 2), hazards.logit(), torch.arange(1))


def _curves(group: Group) -> list[Curve]:
    """The curves of the recipe's own policy, one a seed; none where a seed lacks it."""
    found = [read_curve(run, group.own_policy) for run in group.runs]
    return [curve for curve in found if curve is not None] if None not in found else []


def on_one_grid(curves: Sequence[Curve]) -> list[Curve]:
    """Curves read at the thresholds of all of them, on straight lines, where some runs tried others than the rest."""
    grids = [[point.threshold for point in curve.points] for curve in curves]
    if all(grid == grids[0] for grid in grids):
        return list(curves)
    low, high = max(map(min, grids)), min(map(max, grids))
    values = sorted({value for grid in grids for value in grid if low <= value <= high})
    names = [field.name for field in dataclasses.fields(Point) if field.name != "threshold"]
    made = []
    for curve, grid in zip(curves, grids, strict=True):
        columns = [interpolate(grid, [getattr(point, name) for point in curve.points], values) for name in names]
        points = tuple(Point(value, *rest) for value, *rest in zip(values, *columns, strict=True))
        made.append(dataclasses.replace(curve, points=points))
    return made


def _lines(curves: Mapping[str, Sequence[Curve]], **options: Any) -> object:
    try:
        return plots.score_by_speed_up(curves, **options)
    except ArgumentError:  # seeds that share no cost cannot be averaged
        apart = {f"{name}, seed {n}": curve for name, seeds in curves.items() for n, curve in enumerate(seeds)}
        return plots.score_by_speed_up(apart, **options)
