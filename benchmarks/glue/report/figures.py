"""The paper's Figures 2, 3 and 4, and scores against cost: one panel a task, from what the results hold."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from benchmarks.glue.latency import Timing, read_timings
from benchmarks.glue.report.groups import Group, Groups, by_task, each, labels_of, task_order
from benchmarks.glue.report.notes import NOTES
from benchmarks.glue.results import Result
from benchmarks.glue.thresholds import read_curve
from ponder import Trajectory, plots, recipes
from ponder.analysis.sweeps import Curve
from ponder.errors import ArgumentError, PonderError
from ponder.pages import Figure
from ponder.plots.axes import as_axes, band, legend, next_color, step_ticks
from ponder.plots.seeds import Band

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes"], object]
Panels = dict[str, list[Draw]]
_HAZARD = 1e-6  # a mean posterior of exactly 0 or 1 has no logit


def posteriors(groups: Groups, prefix: str) -> Figure | None:
    """Figure 2: the mean posterior E[p(n|x)] over dev, a panel for each recipe with hazards, a line for each task."""
    panels: Panels = {}
    tasks = task_order(task for _, task in groups)
    for name in labels_of(groups):
        shown = [groups[name, task] for task in tasks if (name, task) in groups]
        shown = [group for group in shown if all(split["halting"] for run in group.runs for split in run.reported)]
        if shown:
            panels[name] = [_posterior(group, place == len(shown) - 1) for place, group in enumerate(shown)]
    return _figure(f"{prefix}-posterior", NOTES["figure-2"], panels)


def by_threshold(groups: Groups, prefix: str) -> Figure | None:
    """Figure 3: the score against Q-exit's q, for the recipes whose policy it is."""
    panels: Panels = {}
    for group in each(groups):
        curves = _curves(group, "quantile")
        if curves and group.own_policy == "quantile":

            def draw(ax: Axes, curves: list[Curve] = curves, name: str = group.label) -> object:
                return plots.score_by_threshold(curves, ax=ax, label=name)

            panels.setdefault(group.task, []).append(draw)
    return _figure(f"{prefix}-score-by-q", NOTES["figure-3"], panels)


def by_speed_up(groups: Groups, prefix: str) -> Figure | None:
    """Figure 4: the score against the speed-up in steps, each recipe with its own policy."""
    return _figure(f"{prefix}-score-by-steps", NOTES["figure-4"], _own_policies(groups, "steps"))


def by_cost(groups: Groups, prefix: str) -> Figure | None:
    """The score against the speed-up in FLOPs: curves where they were kept, and the runs themselves as crosses."""
    panels = _own_policies(groups, "cost")
    for task, shown in by_task(groups):
        panels.setdefault(task, []).append(_runs(shown, "flops", over_curves=task in panels))
    return _figure(f"{prefix}-score-by-flops", NOTES["figure of flops"], panels)


def by_wall_clock(groups: Groups, prefix: str) -> Figure | None:
    """The score against the speed-up in wall-clock, with the range of the timings."""
    panels: Panels = {task: [_runs(shown, "wall_clock", over_curves=False)] for task, shown in by_task(groups)}
    return _figure(f"{prefix}-score-by-wall-clock", NOTES["figure of wall-clock"], panels)


def by_policy(label: str) -> Callable[[Groups, str], Figure | None]:
    """The score of one recipe against the speed-up in FLOPs, with every policy that it can be run with."""

    def made(groups: Groups, prefix: str) -> Figure | None:
        panels: Panels = {}
        for group in (group for group in each(groups) if group.label == label):
            curves = {policy: _curves(group, policy) for policy in group.policies}
            if sum(map(bool, curves.values())) > 1:
                panels[group.task] = [_lines({name: each for name, each in curves.items() if each}, "cost", None)]
        slug = "".join(letter if letter.isalnum() else "-" for letter in label).strip("-")
        return _figure(f"{prefix}-policies-{slug}", NOTES["figure of policies"].format(label=label), panels)

    return made


def by_latency(groups: Groups, prefix: str) -> Figure | None:
    """The score against the speed-up in wall-clock of every policy that a kept model was timed with."""
    panels: Panels = {}
    for group in each(groups):
        timings = [timing for run in group.runs for timing in read_timings(run)]
        if timings:
            panels[f"{group.task}, {group.label}"] = [_timed(timings)]
    return _figure(f"{prefix}-policies-by-wall-clock", NOTES["figure of clock"], panels)


def overthinking(groups: Groups, prefix: str) -> Figure | None:
    """Share of dev that is right at each step, and (dashed) at that step or before."""
    panels: Panels = {}
    for group in each(groups):
        if all(split.get("overthinking") for run in group.runs for split in run.reported):
            panels.setdefault(group.task, []).append(_right_by_step(group))
    return _figure(f"{prefix}-overthinking", NOTES["figure of overthinking"], panels)


def _figure(name: str, caption: str, panels: Mapping[str, Sequence[Draw]]) -> Figure | None:
    """One drawing with a titled panel for each entry; None where there are none."""
    if not panels:
        return None
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
    return Figure(name, caption, text.getvalue())


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


def _own_policies(groups: Groups, by: Literal["steps", "cost"]) -> Panels:
    panels: Panels = {}
    for task, shown in by_task(groups):
        curves = {group.label: _curves(group, group.own_policy) for group in shown}
        vanilla = groups.get(("vanilla", task))
        level = None if vanilla is None else [score / 100 for score in vanilla.scores]
        if any(curves.values()):
            panels[task] = [_lines({name: each for name, each in curves.items() if each}, by, level)]
    return panels


def _curves(group: Group, policy: str) -> list[Curve]:
    """One a seed; none where a seed lacks it."""
    found = [read_curve(run, policy) for run in group.runs]
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


def _runs(shown: Sequence[Group], speed_up: str, over_curves: bool) -> Draw:
    """A cross for each recipe, named beside it where curves took the legend."""

    def draw(ax: Axes) -> None:
        as_axes(ax)
        for place, group in enumerate(shown):
            x, y = group.speed_up(speed_up), statistics.median(group.scores) / 100
            style: dict[str, Any] = {"color": "#222222" if over_curves else f"C{place % 10}"}
            ranges = [run["speed_up"]["wall_clock_range"] for run in group.runs]
            ends = [statistics.median(each) for each in zip(*ranges, strict=True)]
            error = [[max(0.0, x - ends[0])], [max(0.0, ends[1] - x)]] if speed_up == "wall_clock" else None
            ax.errorbar([x], [y], xerr=error, marker="x", linestyle="", **style)
            ax.annotate(group.label, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8, **style)
        words = "wall-clock" if speed_up == "wall_clock" else "FLOPs"
        ax.set(xlabel=f"speed-up in {words}, full depth / run", ylabel="score")
        ax.xaxis.set_major_formatter("{x:g}×")

    return draw


def _timed(timings: Sequence[Timing]) -> Draw:
    """A line for each policy over its thresholds."""

    def draw(ax: Axes) -> None:
        as_axes(ax)
        for policy in dict.fromkeys(timing.policy for timing in timings):
            row = sorted((each for each in timings if each.policy == policy), key=lambda each: each.wall_clock)
            x, y = [each.wall_clock for each in row], [each.point.score for each in row]
            errors = [[each.wall_clock - each.low for each in row], [each.high - each.wall_clock for each in row]]
            ax.errorbar(x, y, xerr=errors, marker="o", color=next_color(ax), label=policy)
        ax.set(xlabel="speed-up in wall-clock, full depth / exits", ylabel="score")
        ax.xaxis.set_major_formatter("{x:g}×")
        legend(ax)

    return draw


def _right_by_step(group: Group) -> Draw:
    """Solid and dashed lines of one recipe, from the shares in the results."""

    def shares(name: str) -> Band:
        of_runs = ([split["overthinking"][name] for split in run.reported] for run in group.runs)
        return Band.of([[statistics.fmean(at) for at in zip(*of_run, strict=True)] for of_run in of_runs])

    def draw(ax: Axes) -> None:
        as_axes(ax)
        color, steps = next_color(ax), range(1, group.example["num_steps"] + 1)
        band(ax, steps, shares("right_by"), color, linestyle="--", marker="", gid=None)
        band(ax, steps, shares("right"), color, shares("right").name(group.label))
        ax.set(xlabel="step n", ylabel="share of dev that is right")
        step_ticks(ax, group.example["num_steps"])
        legend(ax)

    return draw
