"""Do exits pay? All recipes of the suites `pays` at the same mean exit step."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.glue.config import DEFAULT
from benchmarks.glue.report.groups import BLIND, BLIND_FAIR, SPEED_UPS, Group, Groups, choose
from benchmarks.glue.results import Result
from benchmarks.glue.sweep import suite_named
from benchmarks.markdown import table

__all__ = ["COMMON", "COMPARED", "compared_groups", "fair_gaps", "headline", "held_out", "summary"]

SUITES = {"minilm": "pays", "mpnet": "pays-mpnet"}
COMMON = "confidence"
"""The policy of all recipes in the headline, if an answer is a class."""
_RECIPES = tuple(dict.fromkeys(("vanilla", DEFAULT, "ponder", "palbert", "pabee", "deebert")))
COMPARED = (*_RECIPES, BLIND, BLIND_FAIR, "static", "static_taught")
"""Names in the summary.

Blind choices are made on the models of the default, or on those of `ponder`, the default before it,
if it has no runs; `static` is a cut encoder, `static_taught` one that is distilled from the whole.
"""
_BASE = ("vanilla", "static")  # whose common tasks the macro average is over
_SHOWN = {
    "static": "cut and fine-tuned",
    "static_taught": "cut, taught by the whole",
    BLIND_FAIR: "blind, chosen on held-out rows",
}
_Scores = dict[str, float | None]


def compared_groups(results: Sequence[Result]) -> dict[str, Groups]:
    """Return the groups of each backbone: those of its suite, or all if it has no suite."""
    backbones = [*SUITES, *sorted({str(result["backbone"]) for result in results} - SUITES.keys())]
    made = {}
    for backbone in backbones:
        own = [result for result in results if result["backbone"] == backbone]
        if backbone in SUITES:
            own = [result for result in own if suite_named(SUITES[backbone]).has(result)]
        made[backbone] = choose(own)
    return {backbone: groups for backbone, groups in made.items() if groups}


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Return scores in percent by backbone and speed-up in steps: by task, and their macro average.

    ``"1"`` has the scores at full depth; other speed-ups have recipes with their own policies at
    that mean exit step, the best blind choices, and the encoder cut there. A score is None without
    runs, or if a curve does not reach so far. The macro average is over the tasks on which
    `vanilla` and `static` have runs; it is None for a recipe that lacks one of them.
    ``"by_confidence"`` has the same with exits by confidence, over the classification tasks.
    ``"default"`` names the default recipe.
    """
    made: dict[str, Any] = {"default": DEFAULT}
    for backbone, groups in compared_groups(results).items():
        tasks = _tasks(backbone, groups)
        common = _common(groups)
        made[backbone] = {}
        for speed_up in SPEED_UPS:
            own, by_common = (
                {task: _scores_at(groups, task, speed_up, policy) for task in tasks}
                for policy in (None, COMMON)
            )
            classes = [
                task
                for task in common
                if any(COMMON in it.policies for (_, of), it in groups.items() if of == task)
            ]
            made[backbone][f"{speed_up:g}"] = {
                "macro": _macro(own, common),
                "tasks": own,
                "by_confidence": _macro(by_common, classes),
            }
    return made


def fair_gaps(
    groups: Groups, speed_up: float, rival: str = BLIND_FAIR, recipe: str = DEFAULT
) -> dict[str, float]:
    """Return the points by which a recipe is ahead of a rival, by task, medians over seeds.

    Args:
        groups: The groups of one backbone.
        speed_up: The speed-up in steps at which both are read.
        rival: A name of `COMPARED`.
        recipe: The recipe, left by its own policy.
    """
    found = {}
    for own in (groups[recipe, task] for task in _common(groups) if (recipe, task) in groups):
        ours = own.by_seed(speed_up, own.own_policy)
        theirs = _rival(groups, own, rival, speed_up)
        gaps = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        if gaps:
            found[own.task] = statistics.median(gaps)
    return found


def held_out(results: Sequence[Result]) -> str:
    """Return the table on which a default is chosen: exits by confidence, held-out rows of train."""
    rows = []
    for backbone, groups in compared_groups([result.held_out for result in results]).items():
        tasks = [task for name, task in groups if name == "deebert"]
        for name in dict.fromkeys((DEFAULT, "ponder", "deebert", "pabee", "palbert")):
            scores = [_mean_of(groups, name, tasks, times) for times in SPEED_UPS]
            if any(scores):
                cells = ["–" if score is None else f"{score:.1f}" for score in scores]
                rows.append([backbone, name, *cells])
    return table(("backbone", "", *(f"×{times:g}" for times in SPEED_UPS)), rows)


def _mean_of(groups: Groups, name: str, tasks: Sequence[str], speed_up: float) -> float | None:
    own = [
        groups[name, task].at(speed_up, COMMON) if (name, task) in groups else None
        for task in tasks
    ]
    known = [score for score in own if score is not None]
    return statistics.fmean(known) if known and len(known) == len(tasks) else None


def headline(results: Sequence[Result]) -> str:
    """Return the tables that answer the question, and what they are over, as Markdown."""
    groups = compared_groups(results)
    common = {backbone: _common(of) for backbone, of in groups.items()}
    notes = "; ".join(_note(name, groups[name], tasks) for name, tasks in common.items() if tasks)
    blocks = [f"{title}:\n\n{_table_of(results, kind)}" for kind, title in _TABLES.items()]
    blocks.append(f"{_GAPS_TITLE}:\n\n{_gaps_table(groups)}")
    blocks.append(f"Tasks: {notes}. {_NOTES}")
    return "\n\n".join(blocks)


_TABLES = {
    "by_confidence": "**Every recipe left by confidence**, macro over the tasks with classes",
    "macro": "**Every recipe left by its own policy**, macro over all tasks",
}
_GAPS_TITLE = (
    f"**Points by which `{DEFAULT}`, left by its own policy, is ahead**, "
    "gaps between runs of one seed"
)
_NOTES = (
    "Scores are medians over seeds, gaps medians of the gaps between runs of the same seed, macro "
    "averages their mean over tasks; a dash where a recipe lacks one of the tasks, or its policy "
    "does not reach so far. Thresholds are placed by the mean exit step alone, without labels. "
    "Between two thresholds accuracies lie on a straight line, as a coin would have them; of F1 "
    "and correlations the nearest threshold counts. `vanilla` runs to its last step at every "
    "speed-up.\n\n"
    "¹ A bound, and no rival: the step, or the coin between two, that is best on the rows that are "
    "reported."
)


def _table_of(results: Sequence[Result], kind: str) -> str:
    """Return the macro averages of all recipes; `kind` is a key of the summary."""
    rows = []
    for backbone, numbers in summary(results).items():
        if backbone == "default":
            continue
        for name in COMPARED:
            scores = [numbers[f"{times:g}"][kind][name] for times in SPEED_UPS]
            if name != BLIND and any(score is not None for score in scores):
                cells = ["–" if score is None else f"{score:.1f}" for score in scores]
                rows.append([backbone, _SHOWN.get(name, name), *cells])
    return table(("backbone", "", *(f"×{times:g}" for times in SPEED_UPS)), rows)


def _gaps_table(groups: Mapping[str, Groups]) -> str:
    """Return the mean gaps of the default to each rival, by backbone and speed-up."""
    rows = []
    for backbone, of_backbone in groups.items():
        common = _common(of_backbone)
        if not common:
            continue
        for rival in ("vanilla", BLIND_FAIR, BLIND, "static", "static_taught"):
            gaps = [fair_gaps(of_backbone, times, rival) for times in SPEED_UPS[1:]]
            name = "blind, chosen on dev¹" if rival == BLIND else _SHOWN.get(rival, rival)
            rows.append([backbone, name, *(_mean_gap(each, len(common)) for each in gaps)])
    head = ("backbone", "against", *(f"×{times:g}" for times in SPEED_UPS[1:]))
    return table(head, rows)


def _mean_gap(by_task: Mapping[str, float], tasks: int) -> str:
    """Return the mean of gaps over tasks, and how many tasks there are if some are missing."""
    if not by_task:
        return "–"
    mean = f"{statistics.fmean(by_task.values()):+.1f}"
    return mean if len(by_task) == tasks else f"{mean} ({len(by_task)} of {tasks} tasks)"


def _note(backbone: str, groups: Groups, common: Sequence[str]) -> str:
    """Return the tasks of a backbone, their seeds, and those on which the default has runs."""
    counts = sorted(len(groups["vanilla", task].runs) for task in common)
    seeds = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    ran = ", ".join(task for task in common if (DEFAULT, task) in groups) or "none of them"
    return f"`{backbone}`: {', '.join(common)}, {seeds} seeds; `{DEFAULT}` ran on {ran}"


def _tasks(backbone: str, groups: Groups) -> tuple[str, ...]:
    if backbone in SUITES:
        return suite_named(SUITES[backbone]).tasks
    return tuple(sorted({task for _, task in groups}))


def _common(groups: Groups) -> list[str]:
    """Return the tasks on which all of `_BASE` have runs, of those that have any."""
    of_recipe = [
        {
            task
            for (_, task), it in groups.items()
            if it.runs[0]["recipe"] == name and not it.is_taught
        }
        for name in _BASE
    ]
    present = [tasks for tasks in of_recipe if tasks]
    return sorted(set.intersection(*present)) if present else []


def _cut(groups: Groups, task: str, speed_up: float, *, taught: bool) -> Group | None:
    cuts = [
        group
        for (_, of), group in groups.items()
        if of == task and group.is_cut and group.is_taught == taught
    ]
    return next((cut for cut in cuts if abs(cut.speed_up - speed_up) < 1e-6), None)


def _rival(groups: Groups, own: Group, rival: str, speed_up: float) -> dict[int, float]:
    """Return a rival's score by seed; empty without runs."""
    if rival in (BLIND, BLIND_FAIR):
        return own.by_seed(speed_up, rival)
    if rival.startswith("static"):
        cut = _cut(groups, own.task, speed_up, taught=rival == "static_taught")
        return {} if cut is None else cut.by_seed(speed_up, rival)
    group = groups.get((rival, own.task))
    if group is None:
        return {}
    return group.by_seed(1.0 if rival == "vanilla" else speed_up, group.own_policy)


def _scores_at(groups: Groups, task: str, speed_up: float, policy: str | None) -> _Scores:
    """Return the scores of `COMPARED` on one task, all by one policy, or each by its own if None."""
    found: _Scores = dict.fromkeys(COMPARED)
    for name in _RECIPES:
        group = groups.get((name, task))
        if group is not None and (name != "vanilla" or speed_up == 1.0):
            found[name] = _rounded(group.at(speed_up, policy or group.own_policy))
    if speed_up == 1.0:
        return found
    group = groups.get((DEFAULT, task), groups.get(("ponder", task)))
    if group is not None:
        found |= {name: _rounded(group.at(speed_up, name)) for name in (BLIND, BLIND_FAIR)}
    for name in ("static", "static_taught"):
        cut = _cut(groups, task, speed_up, taught=name == "static_taught")
        found[name] = None if cut is None else _rounded(statistics.median(cut.scores))
    return found


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 6)


def _macro(found: Mapping[str, _Scores], common: Sequence[str]) -> _Scores:
    """Return each recipe's mean score over the tasks in `common`; None if it lacks one of them."""
    means: _Scores = {}
    for name in COMPARED:
        scores = [found[task][name] for task in common]
        known = [score for score in scores if score is not None]
        is_whole = bool(known) and len(known) == len(common)
        means[name] = round(statistics.fmean(known), 6) if is_whole else None
    return means
