"""The paper's Figures 2, 3 and 4, and scores against cost: one panel a task, from what the results hold."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch

from benchmarks.glue.report.groups import Group, Groups, by_task, labels_of, task_order
from benchmarks.glue.results import Result
from benchmarks.glue.thresholds import read_curve
from benchmarks.page import Figure
from ponder import Trajectory, plots, recipes
from ponder.analysis.sweeps import Curve
from ponder.errors import ArgumentError, PonderError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes"], object]
_HAZARD = 1e-6  # a mean posterior of exactly 0 or 1 has no logit


def posteriors(groups: Groups, prefix: str) -> list[Figure]:
    """Figure 2: the mean posterior E[p(n|x)] over dev, a panel for each recipe with hazards, a line for each task."""
    panels: dict[str, list[Draw]] = {}
    tasks = task_order(task for _, task in groups)
    for name in labels_of(groups):
        shown = [groups[name, task] for task in tasks if (name, task) in groups]
        shown = [group for group in shown if all(split["halting"] for run in group.runs for split in run.reported)]
        if shown:
            panels[name] = [_posterior(group, place == len(shown) - 1) for place, group in enumerate(shown)]
    caption = "Mean posterior E[p(n|x)] over dev (Figure 2 of the PALBERT paper, which takes train); dashed: the prior."
    return drawn(f"{prefix}-posterior", caption, panels)


def by_threshold(groups: Groups, prefix: str) -> list[Figure]:
    """Figure 3: the score against Q-exit's q, for the recipes whose policy it is."""
    panels: dict[str, list[Draw]] = {}
    for task, shown in by_task(groups):
        for group in shown:
            curves = _curves(group)
            if curves and group.own_policy == "quantile":

                def draw(ax: Axes, curves: list[Curve] = curves, name: str = group.label) -> object:
                    return plots.score_by_threshold(curves, ax=ax, label=name)

                panels.setdefault(task, []).append(draw)
    caption = "Score against the threshold q of Q-exit (as Figure 3 of the PALBERT paper); dotted: full depth."
    return drawn(f"{prefix}-score-by-q", caption, panels)


def by_speed_up(groups: Groups, prefix: str, by: Literal["steps", "cost"] = "steps") -> list[Figure]:
    """Figure 4: the score against the speed-up in steps or FLOPs, each recipe with its own policy."""
    panels: dict[str, list[Draw]] = {}
    for task, shown in by_task(groups):
        found = {group.label: _curves(group) for group in shown}
        curves = {name: each for name, each in found.items() if each}
        vanilla = groups.get(("vanilla", task))
        if curves:
            level = None if vanilla is None else [score / 100 for score in vanilla.scores]
            panels[task] = [_lines(curves, by, level)]
    unit, name = ("steps", "steps") if by == "steps" else ("FLOPs", "flops")
    caption = (
        f"Score against speed-up in {unit}, each recipe with its own policy, whose threshold is varied (as Figure 4 of "
        "the PALBERT paper); dashed: vanilla."
    )
    return drawn(f"{prefix}-score-by-{name}", caption, panels)


def drawn(name: str, caption: str, panels: Mapping[str, Sequence[Draw]]) -> list[Figure]:
    """One drawing with a titled panel for each entry; none where there are none."""
    if not panels:
        return []
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure as Drawing
    except ImportError as error:
        raise PonderError("The report's figures need matplotlib: pip install 'ponder-torch[plots]'.") from error
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    # Text stays text (small, searchable); the salt makes two drawings of the same numbers the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        drawing = Drawing(figsize=(5.2 * columns, 4.0 * rows), layout="constrained")
        axes = list(drawing.subplots(rows, columns, squeeze=False).flat)
        for (title, draws), ax in zip(panels.items(), axes, strict=False):
            for draw in draws:
                draw(ax)
            ax.set_title(title)
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        text = io.StringIO()
        drawing.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return [Figure(name, caption, text.getvalue())]


def _posterior(group: Group, last: bool) -> Draw:
    run = group.example
    options = run["config"]["recipe_options"]
    prior = recipes.get(run["recipe"], **options).for_steps(run["num_steps"]).prior if last else None
    trajectories = [_of_halting(each) for each in group.runs]
    return lambda ax: plots.posterior(trajectories, prior, ax=ax, label=group.task)


def _of_halting(run: Result) -> Trajectory:
    """A trajectory of one row whose halting distribution is the mean one of the run."""
    pmf = torch.tensor([split["halting"] for split in run.reported], dtype=torch.float64).mean(0, keepdim=True)
    before = 1.0 - pmf.cumsum(1) + pmf
    hazards = (pmf / before.clamp_min(_HAZARD)).clamp(_HAZARD, 1 - _HAZARD)
    return Trajectory(torch.zeros(1, pmf.shape[1], 2), hazards.logit(), torch.arange(1))


def _curves(group: Group) -> list[Curve]:
    """Of the recipe's own policy, one a seed; none where a seed lacks it."""
    found = [read_curve(run, group.own_policy) for run in group.runs]
    return [curve for curve in found if curve is not None] if None not in found else []


def _lines(
    curves: Mapping[str, Sequence[Curve]], by: Literal["steps", "cost"], baseline: Sequence[float] | None
) -> Draw:
    def draw(ax: Axes) -> object:
        try:
            return plots.score_by_speed_up(curves, by=by, baseline=baseline, ax=ax)
        except ArgumentError:  # seeds that share no cost cannot be averaged
            apart = {f"{name}, seed {n}": curve for name, seeds in curves.items() for n, curve in enumerate(seeds)}
            return plots.score_by_speed_up(apart, by=by, baseline=baseline, ax=ax)

    return draw
