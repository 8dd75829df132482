"""Do exits pay? The runs of the suites `pays` in a few numbers: all recipes at the same mean exit step."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from benchmarks.figures import panels_as_figure
from benchmarks.glue.report.goals import goals_table
from benchmarks.glue.report.groups import BLIND, Groups, choose
from benchmarks.glue.report.tables import at_equal_cost
from benchmarks.glue.results import Result
from benchmarks.glue.sweeping import suite as suites
from ponder.pages import Block, Table, Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COMPARED", "headline", "is_of_suite", "summary"]

COMPARED = ("vanilla", "ponder", "palbert", "pabee", BLIND, "static")
"""Names in the summary; `static` is the encoder cut and fine-tuned so."""

_SHOWN = {"static": "cut and fine-tuned"}
_BASE = ("vanilla", "ponder", "static")  # whose tasks the macro average is over; blind is on the models of ponder
_SUITES = {"minilm": "pays", "mpnet": "pays-mpnet"}
_SPEED_UPS = (1.0, 1.5, 2.0, 3.0)
_Scores = dict[str, float | None]


def is_of_suite(result: Result) -> bool:
    """Whether a run is one of the suite `pays` of its backbone: its configuration, and so its key, stands there."""
    seed = int(result["config"]["seed"])  # of any number of seeds
    return result.path is not None and result.path.stem in _keys(result["backbone"], seed)


@cache
def _keys(backbone: str, seed: int) -> set[str]:
    cells = suites.get(_SUITES[backbone]).cells(backbone) if backbone in _SUITES else []
    return {dataclasses.replace(point, seed=seed).key for cell in cells for point in cell.points}


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Scores in percent by backbone and speed-up in steps: of every task, and their macro average.

    Each is a median over the seeds that are there; what has no runs, and what a curve does not reach, is None. Under
    ``"1"`` stand `vanilla` and the others at full depth; elsewhere recipes left by their own policies at that mean exit
    step, the best blind choice on the models of `ponder`, and the encoder cut there. The macro average is over the
    tasks on which `vanilla`, `ponder` and `static` have runs, as far as they have any; it is None for a recipe that
    lacks one of these tasks.
    """
    made: dict[str, Any] = {}
    for backbone, groups in _by_backbone(results).items():
        made[backbone] = {}
        for speed_up in _SPEED_UPS:
            found = {task: _scores_at(groups, task, speed_up) for task in suites.get(_SUITES[backbone]).tasks}
            scores = {"macro": _macro(found, _common(groups)), "tasks": found}
            made[backbone][f"{speed_up:g}"] = scores
    return made


def headline(results: Sequence[Result]) -> list[Block]:
    """A figure and two tables: the macro averages of `summary`, over which tasks and seeds they are, and the goals."""
    panels, rows, notes, found, by_backbone = {}, [], [], summary(results), _by_backbone(results)
    for (backbone, numbers), groups in zip(found.items(), by_backbone.values(), strict=True):
        common = _common(groups)
        if common:
            shown = [name for name in COMPARED if any(numbers[f"{times:g}"]["macro"][name] for times in _SPEED_UPS)]
            notes.append(f"`{backbone}`: {', '.join(common)} (seeds: {_seeds(groups, common, shown)})")
            panels[f"{backbone}, {len(common)} tasks"] = [partial(_draw, groups)]
        for name in COMPARED:
            scores = [numbers[f"{speed_up:g}"]["macro"][name] for speed_up in _SPEED_UPS]
            if any(scores):
                rows.append(
                    [backbone, _SHOWN.get(name, name), *("–" if score is None else f"{score:.1f}" for score in scores)]
                )
    if not rows:
        return [Text("There are no runs of the suites `pays` yet.")]
    caption = (
        "Score against speed-up in steps, macro over the same tasks: recipes left by their own policies, blind "
        "choices, and encoders that were cut."
    )
    head = ["backbone", "", *(f"×{speed_up:g}" for speed_up in _SPEED_UPS)]
    note = (
        "Macro over the tasks that vanilla, ponder and the encoder cut and fine-tuned have, medians over seeds; a dash "
        f"where a recipe was not run on one of them, or its policy does not get that far there. {'; '.join(notes)}. "
        "Gaps are the comparison, and not what stands beside each other here: recipes may have other seeds, and where "
        "they have the same, the median of differences is not the difference of medians."
    )
    told = (
        "How far `ponder` was to be ahead, by goals that were set beforehand, and how far it is, in points, between "
        "runs of the same seed: by their medians over seeds, and by their means where these differ. *No goal*: none "
        "was set for that backbone."
    )
    goals = goals_table({name: (groups, _common(groups)) for name, groups in by_backbone.items()})
    return [*panels_as_figure("pays", caption, panels), Table(head, rows), Text(note), Text(told), goals]


def _seeds(groups: Groups, common: Sequence[str], shown: Sequence[str]) -> str:
    """How many seeds there are, and which of the recipes shown have fewer, where."""
    counts: dict[tuple[str, str], int] = {}
    for (label, task), group in groups.items():
        name = "static" if group.is_cut else label
        if name in shown and task in common and not group.is_distilled:
            counts[name, task] = min(len(group.runs), counts.get((name, task), len(group.runs)))
    most, fewer = max(counts.values()), defaultdict[tuple[int, str], list[str]](list)
    for name in shown:
        for count in range(1, most):
            tasks = ", ".join(task for task in common if counts.get((name, task)) == count)
            if tasks:
                fewer[count, tasks].append(_SHOWN.get(name, name))
    told = "; ".join(f"{count} of {' and '.join(of)} on {where}" for (count, where), of in fewer.items())
    return f"{most}, but {told}" if told else str(most)


def _by_backbone(results: Sequence[Result]) -> dict[str, Groups]:
    runs = [result for result in results if is_of_suite(result)]
    return {name: choose(run for run in runs if run["backbone"] == name)[0] for name in _SUITES}


def _common(groups: Groups) -> list[str]:
    """The tasks on which all of `_BASE` have runs, of those that have any."""
    of_recipe = [
        {task for (_, task), it in groups.items() if it.runs[0]["recipe"] == name and not it.is_distilled}
        for name in _BASE
    ]
    present = [tasks for tasks in of_recipe if tasks]
    return sorted(set.intersection(*present)) if present else []


def _scores_at(groups: Groups, task: str, speed_up: float) -> _Scores:
    """The scores of `COMPARED` on one task, in percent."""
    if speed_up == 1.0:
        known = {
            name: 100 * statistics.median(run.score("full_depth") for run in groups[name, task].runs)
            for name in COMPARED
            if (name, task) in groups
        }
    else:
        found = dict(at_equal_cost({key: it for key, it in groups.items() if key[1] == task}, speed_up))
        rows = {BLIND: ("ponder", BLIND), "static": ("static", "cut")}
        places = {name: (rows.get(name, (name, "its own")), task) for name in COMPARED if name != "vanilla"}
        known = {name: found[place] for name, place in places.items() if place in found}
    return {name: round(known[name], 6) if name in known else None for name in COMPARED}


def _macro(found: Mapping[str, _Scores], common: Sequence[str]) -> _Scores:
    """Each recipe's mean score over the tasks in `common`; None where it lacks one of them."""
    columns = {name: [score for task in common if (score := found[task][name]) is not None] for name in COMPARED}
    return {
        name: round(statistics.fmean(scores), 6) if scores and len(scores) == len(common) else None
        for name, scores in columns.items()
    }


def _draw(groups: Groups, ax: Axes) -> None:
    """Lines for policies and blind, points for encoders that were cut, a level for plain fine-tuning."""
    common, grid = _common(groups), [1 + place / 10 for place in range(26)]
    lines = [_macro({task: _scores_at(groups, task, speed_up) for task in common}, common) for speed_up in grid]
    styles: dict[str, Any] = {
        BLIND: {"color": "0.4", "linestyle": "--"},
        "static": {"color": "black", "marker": "x", "linestyle": ""},
    }
    for name in COMPARED:
        known = [(speed_up, scores[name]) for speed_up, scores in zip(grid, lines, strict=True) if scores[name]]
        if name == "vanilla" and known:
            ax.axhline(known[0][1] or 0.0, color="0.5", linestyle=":", label=name)
        elif known:
            ax.plot(*zip(*known, strict=True), label=_SHOWN.get(name, name), **styles.get(name, {}))
    ax.set(xlabel="speed-up in steps, N / mean exit step", ylabel="score, in percent")
    ax.xaxis.set_major_formatter("{x:g}×")
    ax.legend(loc="best")  # said, so that a busy machine is no reason for a warning
