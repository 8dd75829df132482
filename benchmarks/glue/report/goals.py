"""What the suites `pays` were to show, set beside what they show: gaps between runs of the same seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.glue.report.groups import BLIND, Group, Groups
from ponder.pages import Table

__all__ = ["GOALS", "Goal", "gap", "gaps_by_seed", "goals_table"]


@dataclass(frozen=True)
class Goal:
    """`ponder` at one speed-up in steps is to have at least `gap` points more than a rival.

    Attributes:
        rival: Its name in the summary; `vanilla` is taken at full depth at every speed-up.
        speed_up: At which both are read.
        gap: Points of the macro average, in percent; below zero where `ponder` may lose some.
        backbones: On which it is asked for.
    """

    rival: str
    speed_up: float
    gap: float
    backbones: tuple[str, ...] = ("minilm", "mpnet")

    def gap_in(self, groups: Groups, tasks: Sequence[str]) -> float | None:
        """The mean gap over tasks; None where there are none, or one of the two was not run on one."""
        found = [gap(groups, task, self.rival, self.speed_up) for task in tasks]
        known = [each for each in found if each is not None]
        return statistics.fmean(known) if known and len(known) == len(found) else None


GOALS = (
    Goal(BLIND, 1.5, 0.5),
    Goal(BLIND, 2.0, 1.0),
    Goal(BLIND, 3.0, 2.0),
    Goal("static", 1.5, 0.5),
    Goal("static", 2.0, 1.0),
    Goal("vanilla", 1.0, -0.3),
    Goal("vanilla", 2.0, -0.7, ("mpnet",)),
)
"""Those of the task that asked for the suites."""

_RIVALS = {BLIND: "blind", "static": "cut and fine-tuned", "vanilla": "vanilla at full depth"}


def gap(groups: Groups, task: str, rival: str, speed_up: float) -> float | None:
    """Points by which `ponder` is ahead of a rival on one task, each seed of both compared; their median.

    Seeds differ by more than recipes do, and medians of different seeds would be compared with one another.
    """
    gaps = gaps_by_seed(groups, task, rival, speed_up)
    return statistics.median(gaps) if gaps else None


def gaps_by_seed(groups: Groups, task: str, rival: str, speed_up: float) -> list[float]:
    """The points of `gap`, of each seed that both have."""
    own = groups.get(("ponder", task))
    if own is None:
        return []
    other = own if rival == BLIND else _rival(groups, task, rival, speed_up)
    if other is None:
        return []
    ours = own.by_seed(speed_up, own.own_policy)
    theirs = other.by_seed(1.0 if rival == "vanilla" else speed_up, BLIND)
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def _rival(groups: Groups, task: str, rival: str, speed_up: float) -> Group | None:
    if rival == "vanilla":
        return groups.get((rival, task))
    cuts = [group for (_, of), group in groups.items() if of == task and group.is_cut]
    wanted = [cut for cut in cuts if cut.is_distilled == (rival == "distilled")]
    return next((cut for cut in wanted if abs(cut.speed_up - speed_up) < 1e-6), None)


def goals_table(by_backbone: Mapping[str, tuple[Groups, Sequence[str]]]) -> Table:
    """A row a goal, a column a backbone (its groups and tasks): the gap, and whether it is as large as was asked."""
    rows = []
    for goal in GOALS:
        cells = []
        for name, (groups, tasks) in by_backbone.items():
            found = goal.gap_in(groups, tasks) if name in goal.backbones else None
            verdict = "–" if found is None else "met" if found >= goal.gap else "missed"
            cells.append("–" if found is None else f"{round(found, 1) + 0.0:+.1f}, {verdict}")
        rows.append([f"×{goal.speed_up:g}", _RIVALS[goal.rival], f"{goal.gap:+.1f}", *cells])
    return Table(["`ponder` at", "against", "goal", *by_backbone], rows)
