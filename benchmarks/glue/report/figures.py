"""The figure of the report: macro averages against the speed-up in steps."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.figures import Draw, panels
from benchmarks.glue.config import DEFAULT
from benchmarks.glue.report.groups import BLIND_FAIR, Groups

__all__ = ["macro"]

_GRID = [1 + place / 5 for place in range(13)]


def macro(path: Path, by_backbone: Mapping[str, Groups]) -> None:
    """Draw the macro average against speed-up in steps: recipes left by their own policies, blind choices, cuts."""
    named: dict[str, list[Draw]] = {}
    for backbone, groups in by_backbone.items():
        tasks = [task for name, task in groups if name == DEFAULT and ("vanilla", task) in groups]
        if tasks:
            names = [name for name in dict.fromkeys((DEFAULT, "palbert", "pabee")) if (name, tasks[0]) in groups]
            draws: list[Draw] = [partial(_line, groups, tasks, name, None) for name in names]
            draws += [partial(_line, groups, tasks, DEFAULT, BLIND_FAIR), partial(_cuts, groups, tasks)]
            named[f"{backbone}, {len(tasks)} tasks"] = draws
    panels(path, named)


def _line(groups: Groups, tasks: list[str], name: str, policy: str | None, axes: Any) -> None:
    points = []
    for speed_up in _GRID:
        own = [groups.get((name, task)) for task in tasks]
        scores = [None if group is None else group.at(speed_up, policy or group.own_policy) for group in own]
        known = [score for score in scores if score is not None]
        if len(known) == len(tasks):
            points.append((speed_up, statistics.fmean(known)))
    if points:
        style: dict[str, Any] = {} if policy is None else {"color": "0.4", "linestyle": "--"}
        label = name if policy is None else "blind, chosen on held-out rows"
        axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set(xlabel="speed-up in steps, N / mean exit step", ylabel="score, in percent")


def _cuts(groups: Groups, tasks: list[str], axes: Any) -> None:
    """Draw encoders that were cut as points, and plain fine-tuning as a level."""
    for taught, marker in ((False, "x"), (True, "s")):
        cuts: dict[float, list[float]] = {}
        for (_, task), group in groups.items():
            if group.is_cut and group.is_taught == taught and task in tasks:
                cuts.setdefault(round(group.speed_up, 6), []).append(statistics.median(group.scores))
        points = [(speed_up, statistics.fmean(own)) for speed_up, own in cuts.items() if len(own) == len(tasks)]
        if points:
            label = "cut, taught by the whole" if taught else "cut and fine-tuned"
            axes.plot(*zip(*points, strict=True), marker, color="black", fillstyle="none", label=label)
    plain = statistics.fmean(statistics.median(groups["vanilla", task].scores) for task in tasks)
    axes.axhline(plain, color="0.5", linestyle=":", label="vanilla")
