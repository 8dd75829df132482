"""Figures of the report: score against speed-up, of the macro average and of every task, and mean posteriors."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Draw, panels
from benchmarks.glue.config import DEFAULT
from benchmarks.glue.report.groups import BLIND_FAIR, Group, Groups, by_task

__all__ = ["macro", "posteriors", "score_by_speed_up"]

_GRID = [1 + place / 10 for place in range(26)]


def macro(path: Path, by_backbone: Mapping[str, Groups]) -> None:
    """Draw the macro average against speed-up in steps: recipes left by their own policies, blind choices, cuts."""
    named: dict[str, list[Draw]] = {}
    for backbone, groups in by_backbone.items():
        tasks = [task for name, task in groups if name == DEFAULT and ("vanilla", task) in groups]
        if tasks:
            lines = [name for name in dict.fromkeys((DEFAULT, "palbert", "pabee")) if (name, tasks[0]) in groups]
            draws: list[Draw] = [partial(_macro_line, groups, tasks, name, None) for name in lines]
            draws += [partial(_macro_line, groups, tasks, DEFAULT, BLIND_FAIR), partial(_cuts, groups, tasks)]
            draws.append(partial(_level, [groups["vanilla", task] for task in tasks]))
            named[f"{backbone}, {len(tasks)} tasks"] = draws
    panels(path, named)


def score_by_speed_up(path: Path, groups: Groups) -> None:
    """Draw the score of every task against the speed-up in steps, each recipe left by its own policy."""
    named: dict[str, list[Draw]] = {}
    for task, shown in by_task(groups):
        curved = [group for group in shown if group.policies]
        if curved:
            named[task] = [partial(_macro_line, groups, [task], group.label, None) for group in curved]
            named[task] += [partial(_level, [groups["vanilla", task]])] if ("vanilla", task) in groups else []
    panels(path, named)


def posteriors(path: Path, groups: Groups) -> None:
    """Draw the mean posterior E[p(n|x)] over dev, a panel for each recipe with hazards, a line for each task."""
    named: dict[str, list[Draw]] = {}
    for task, shown in by_task(groups):
        for group in shown:
            if all(split["halting"] for run in group.runs for split in run.reported):
                named.setdefault(group.label, []).append(partial(_posterior, group, task))
    if named:
        panels(path, named)


def _macro_line(groups: Groups, tasks: list[str], name: str, policy: str | None, axes: Any) -> None:
    points = []
    for speed_up in _GRID:
        own = [groups.get((name, task)) for task in tasks]
        scores = [None if group is None else group.at(speed_up, policy or group.own_policy) for group in own]
        known = [score for score in scores if score is not None]
        if len(known) == len(tasks):
            points.append((speed_up, statistics.fmean(known)))
    if points:
        style: dict[str, Any] = {} if policy is None else {"color": "0.4", "linestyle": "--"}
        axes.plot(
            *zip(*points, strict=True), label=name if policy is None else "blind, chosen on held-out rows", **style
        )
    axes.set(xlabel="speed-up in steps, N / mean exit step", ylabel="score, in percent")


def _cuts(groups: Groups, tasks: list[str], axes: Any) -> None:
    for taught, marker in ((False, "x"), (True, "s")):
        cuts: dict[float, list[float]] = {}
        for (_, task), group in groups.items():
            if group.is_cut and group.is_taught == taught and task in tasks:
                cuts.setdefault(round(group.speed_up, 6), []).append(statistics.median(group.scores))
        points = [(speed_up, statistics.fmean(own)) for speed_up, own in cuts.items() if len(own) == len(tasks)]
        if points:
            name = "cut, taught by the whole" if taught else "cut and fine-tuned"
            axes.plot(*zip(*points, strict=True), marker, color="black", fillstyle="none", label=name)


def _level(plain: list[Group], axes: Any) -> None:
    axes.axhline(
        statistics.fmean(statistics.median(group.scores) for group in plain),
        color="0.5",
        linestyle=":",
        label="vanilla",
    )


def _posterior(group: Group, task: str, axes: Any) -> None:
    pmf = np.mean([split["halting"] for run in group.runs for split in run.reported], axis=0)
    axes.plot(range(1, len(pmf) + 1), pmf, ".-", label=task)
    axes.set(xlabel="step n", ylabel="mean p(n|x)")
