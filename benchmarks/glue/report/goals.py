"""What the suites `pays` were to show, set beside what they show: gaps between two macro averages of the summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.glue.report.groups import BLIND
from ponder.pages import Table

__all__ = ["GOALS", "Goal", "goals_table"]


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

    def gap_in(self, numbers: Mapping[str, Any]) -> float | None:
        """The gap that a backbone's part of the summary has; None where one of the two was not run."""
        own = numbers[f"{self.speed_up:g}"]["macro"]["ponder"]
        other = numbers["1" if self.rival == "vanilla" else f"{self.speed_up:g}"]["macro"][self.rival]
        return None if own is None or other is None else round(own - other, 2)


GOALS = (
    Goal(BLIND, 1.5, 0.5),
    Goal(BLIND, 2.0, 1.0),
    Goal(BLIND, 3.0, 2.0),
    Goal("static", 1.5, 0.5),
    Goal("static", 2.0, 1.0),
    Goal("vanilla", 1.0, -0.3),
    Goal("vanilla", 2.0, -0.7, ("mpnet",)),
)
"""Set before the runs were made."""

_RIVALS = {BLIND: "blind", "static": "cut and fine-tuned", "vanilla": "vanilla at full depth"}


def goals_table(numbers: Mapping[str, Any]) -> Table:
    """A row a goal, a column a backbone of the summary: the gap, and whether it is as large as was asked."""
    rows = []
    for goal in GOALS:
        gaps = {name: goal.gap_in(of) if name in goal.backbones else None for name, of in numbers.items()}
        cells = [
            "–" if gap is None else f"{round(gap, 1) + 0.0:+.1f}, {'met' if gap >= goal.gap else 'missed'}"
            for gap in gaps.values()
        ]
        rows.append([f"×{goal.speed_up:g}", _RIVALS[goal.rival], f"{goal.gap:+.1f}", *cells])
    return Table(["`ponder` at", "against", "goal", *numbers], rows)
