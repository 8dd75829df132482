"""What the suites `pays` were to show, set beside what they show: gaps between runs of the same seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.glue.report.groups import BLIND, Groups
from benchmarks.glue.results import Result
from ponder.pages import Table

__all__ = ["GOALS", "Goal", "gap", "gaps_by_seed", "goals_table"]


Middle = Callable[[Sequence[float]], float]
"""What stands for the seeds of a task: their median, or their mean."""


@dataclass(frozen=True)
class Goal:
    """`ponder` at one speed-up in steps is to have at least `gap` points more than a rival.

    Attributes:
        rival: `BLIND`; ``"static"``, the encoder cut there; ``"cheaper"``, of those that were cut there or earlier the
            one with the best held-out score; or ``"vanilla"``, at full depth at every speed-up.
        speed_up: At which both are read.
        gap: Points of the macro average, in percent; below zero where `ponder` may lose some.
        backbones: On which it is asked for.
    """

    rival: str
    speed_up: float
    gap: float
    backbones: tuple[str, ...] = ("minilm", "mpnet")

    def gap_in(self, groups: Groups, tasks: Sequence[str], middle: Middle = statistics.median) -> float | None:
        """The mean gap over tasks; None where there are none, or one of the two was not run on one."""
        found = [gap(groups, task, self.rival, self.speed_up, middle) for task in tasks]
        known = [each for each in found if each is not None]
        return statistics.fmean(known) if known and len(known) == len(found) else None

    def told(self, groups: Groups, tasks: Sequence[str], *, asked: bool = True) -> str:
        """The gap, and whether it is as large as was asked: by the medians over seeds and, where not, by the means."""
        found = [self.gap_in(groups, tasks, middle) for middle in (statistics.median, statistics.fmean)]
        known = [gap for gap in found if gap is not None]
        if not known:
            return "–"
        texts = list(dict.fromkeys(self._text(gap) for gap in known))
        verdict = ("missed", "met by one of them", "met")[sum(gap >= self.gap for gap in known)] if asked else "no goal"
        return f"{' / '.join(texts)}, {verdict}"

    def _text(self, gap: float) -> str:
        """The gap to one place; to more where a goal that was missed would look met."""
        places = next((n for n in (1, 2) if gap >= self.gap or round(gap, n) < self.gap), 3)
        return f"{round(gap, places) + 0.0:+.{places}f}"


GOALS = (
    Goal(BLIND, 1.5, 0.5),
    Goal(BLIND, 2.0, 1.0),
    Goal(BLIND, 3.0, 2.0),
    Goal("static", 1.5, 0.5),
    Goal("static", 2.0, 1.0),
    Goal("cheaper", 1.5, 0.5),
    Goal("cheaper", 2.0, 1.0),
    Goal("vanilla", 1.0, -0.3),
    Goal("vanilla", 2.0, -0.7, ("mpnet",)),
)
"""Those of the task that asked for the suites, and the harder ones against the best cut that costs no more."""

_RIVALS = {
    BLIND: "blind",
    "static": "cut there and fine-tuned",
    "cheaper": "cut there or earlier, the better on held-out parts",
    "vanilla": "vanilla at full depth",
}


def gap(groups: Groups, task: str, rival: str, speed_up: float, middle: Middle = statistics.median) -> float | None:
    """Points by which `ponder` is ahead of a rival on one task, each seed of both compared; their median.

    Seeds differ by more than recipes do, and medians of different seeds would be compared with one another.
    """
    gaps = gaps_by_seed(groups, task, rival, speed_up)
    return middle(gaps) if gaps else None


def gaps_by_seed(groups: Groups, task: str, rival: str, speed_up: float) -> list[float]:
    """The points of `gap`, of each seed that both have."""
    own = groups.get(("ponder", task))
    if own is None:
        return []
    ours = own.by_seed(speed_up, own.own_policy)
    theirs = own.by_seed(speed_up, BLIND) if rival == BLIND else _rival(groups, task, rival, speed_up)
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def _rival(groups: Groups, task: str, rival: str, speed_up: float) -> dict[int, float]:
    """The scores of a model of its own, by seed, in percent."""
    if rival == "vanilla":
        return groups[rival, task].by_seed(1.0, BLIND) if (rival, task) in groups else {}
    cuts = [group for (_, of), group in groups.items() if of == task and group.is_cut]
    wanted = [cut for cut in cuts if cut.is_distilled == (rival == "distilled")]
    there = [cut for cut in wanted if abs(cut.speed_up - speed_up) < 1e-6]
    if rival != "cheaper":
        return there[0].by_seed(speed_up, BLIND) if there else {}
    best: dict[int, Result] = {}
    for run in (run for cut in wanted if cut.speed_up > speed_up - 1e-6 for run in cut.runs):
        seed = run["config"]["seed"]
        best[seed] = max(best.get(seed, run), run, key=lambda it: it.selection_score)
    return {seed: 100 * best[seed].score("exits") for cut in there for seed in cut.by_seed(speed_up, BLIND)}


def goals_table(by_backbone: Mapping[str, tuple[Groups, Sequence[str]]]) -> Table:
    """A row a goal, a column a backbone (its groups and tasks): the gap, and whether it is as large as was asked."""
    rows = [
        [
            f"×{goal.speed_up:g}",
            _RIVALS[goal.rival],
            f"{goal.gap:+.1f}",
            *(goal.told(*of, asked=name in goal.backbones) for name, of in by_backbone.items()),
        ]
        for goal in GOALS
    ]
    return Table(["`ponder` at", "against", "goal", *by_backbone], rows)
