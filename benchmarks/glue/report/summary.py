"""Do exits pay? The runs of the suites `pays` in a few numbers: all recipes at the same mean exit step."""

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
"""The one policy by which all recipes are left in the headline, where an answer is a class."""
_RECIPES = tuple(dict.fromkeys(("vanilla", DEFAULT, "ponder", "palbert", "pabee", "deebert")))
COMPARED = (*_RECIPES, BLIND, BLIND_FAIR, "static", "static_taught")
"""Names in the summary: blind choices are made on the models of the default, and where it has no runs on those of
`ponder`, the default before it; `static` is the encoder cut and fine-tuned so, `static_taught` the one that the whole
encoder taught."""
_BASE = ("vanilla", "static")  # whose tasks the macro average is over
_SHOWN = {
    "static": "cut and fine-tuned",
    "static_taught": "cut, taught by the whole",
    BLIND_FAIR: "blind, chosen on held-out rows",
}
_Scores = dict[str, float | None]


def compared_groups(results: Sequence[Result]) -> dict[str, Groups]:
    """Return the groups of each backbone: those of its suite, and all of a backbone that has none."""
    backbones = [*SUITES, *sorted({str(result["backbone"]) for result in results} - SUITES.keys())]
    made = {}
    for backbone in backbones:
        own = [result for result in results if result["backbone"] == backbone]
        if backbone in SUITES:
            own = [result for result in own if suite_named(SUITES[backbone]).has(result)]
        made[backbone] = choose(own)
    return {backbone: groups for backbone, groups in made.items() if groups}


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Return scores in percent by backbone and speed-up in steps: of every task, and their macro average.

    Under ``"1"`` stand the scores at full depth; elsewhere recipes left by their own policies at
    that mean exit step, the best blind choices, and the encoder cut there. A score is None without
    runs, and where a curve does not reach so far; the macro average is over the tasks on which
    `vanilla` and `static` have runs, None for a recipe that lacks one of them. Under
    ``"by_confidence"`` stand the same, all left by confidence, over those of the tasks that have
    classes. ``"default"`` names the default recipe.
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
    """Return the points by which a recipe is ahead of a rival on each common task: medians over seeds of the gaps.

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
    """Return what a default is chosen on: recipes left by confidence, on the rows of train that select the epochs."""
    rows = []
    for backbone, groups in compared_groups([result.held_out for result in results]).items():
        tasks = [task for name, task in groups if name == "deebert"]
        for name in dict.fromkeys((DEFAULT, "ponder", "deebert", "pabee", "palbert")):
            scores = [_mean_of(groups, name, tasks, times) for times in SPEED_UPS]
            if any(scores):
                rows.append(
                    [
                        backbone,
                        name,
                        *("–" if score is None else f"{score:.1f}" for score in scores),
                    ]
                )
    return table(("backbone", "", *(f"×{times:g}" for times in SPEED_UPS)), rows)


def _mean_of(groups: Groups, name: str, tasks: Sequence[str], speed_up: float) -> float | None:
    own = [
        groups[name, task].at(speed_up, COMMON) if (name, task) in groups else None
        for task in tasks
    ]
    known = [score for score in own if score is not None]
    return statistics.fmean(known) if known and len(known) == len(tasks) else None


def headline(results: Sequence[Result]) -> str:
    """Return the two tables that answer the question, and what they are over, as Markdown."""
    found = summary(results)
    blocks = list[str]()
    for kind, words in (
        ("by_confidence", "**Every recipe left by confidence**, macro over the tasks with classes"),
        ("macro", "**Every recipe left by its own policy**, macro over all tasks"),
    ):
        rows = []
        for backbone, numbers in found.items():
            for name in COMPARED if backbone != "default" else ():
                scores = [numbers[f"{times:g}"][kind][name] for times in SPEED_UPS]
                if name != BLIND and any(score is not None for score in scores):
                    cells = ["–" if score is None else f"{score:.1f}" for score in scores]
                    rows.append([backbone, _SHOWN.get(name, name), *cells])
        blocks += [
            f"{words}:",
            table(("backbone", "", *(f"×{times:g}" for times in SPEED_UPS)), rows),
        ]
    gaps = []
    notes = []
    for backbone, groups in compared_groups(results).items():
        common = _common(groups)
        if not common:
            continue
        counts = sorted(len(groups["vanilla", task].runs) for task in common)
        seeds = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        ran = ", ".join(task for task in common if (DEFAULT, task) in groups) or "none of them"
        notes.append(f"`{backbone}`: {', '.join(common)}, {seeds} seeds; `{DEFAULT}` ran on {ran}")
        for rival in ("vanilla", BLIND_FAIR, BLIND, "static", "static_taught"):
            cells = []
            for times in SPEED_UPS[1:]:
                of_task = fair_gaps(groups, times, rival)
                some = (
                    ""
                    if len(of_task) == len(common)
                    else f" ({len(of_task)} of {len(common)} tasks)"
                )
                cells.append(f"{statistics.fmean(of_task.values()):+.1f}{some}" if of_task else "–")
            name = "blind, chosen on dev¹" if rival == BLIND else _SHOWN.get(rival, rival)
            gaps.append([backbone, name, *cells])
    head = ("backbone", "against", *(f"×{times:g}" for times in SPEED_UPS[1:]))
    blocks += [
        f"**Points by which `{DEFAULT}`, left by its own policy, is ahead**, gaps between runs of one seed:"
    ]
    blocks += [table(head, gaps)]
    blocks.append(
        f"Tasks: {'; '.join(notes)}. Scores are medians over seeds, gaps medians of the gaps between runs of the same "
        "seed, macro averages their mean over tasks; a dash where a recipe lacks one of the tasks, or its policy does "
        "not reach so far. Thresholds are placed by the mean exit step alone, without labels. Between two thresholds "
        "accuracies lie on a straight line, as a coin would have them; of F1 and correlations the nearest threshold "
        "counts. `vanilla` runs to its last step at every speed-up.\n\n"
        "¹ A bound, and no rival: the step, or the coin between two, that is best on the rows that are reported."
    )
    return "\n\n".join(blocks)


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
    task = own.task
    if rival in (BLIND, BLIND_FAIR):
        return own.by_seed(speed_up, rival)
    if rival.startswith("static"):
        cut = _cut(groups, task, speed_up, taught=rival == "static_taught")
        return {} if cut is None else cut.by_seed(speed_up, rival)
    group = groups.get((rival, task))
    return (
        {}
        if group is None
        else group.by_seed(1.0 if rival == "vanilla" else speed_up, group.own_policy)
    )


def _scores_at(groups: Groups, task: str, speed_up: float, policy: str | None) -> _Scores:
    """Return the scores of `COMPARED` on one task, left by one policy, or each by its own."""
    found: _Scores = dict.fromkeys(COMPARED)
    for name in _RECIPES:
        group = groups.get((name, task))
        if group is not None and (name != "vanilla" or speed_up == 1.0):
            found[name] = group.at(speed_up, policy or group.own_policy)
    if speed_up > 1.0:
        for name in (BLIND, BLIND_FAIR):
            group = groups.get((DEFAULT, task), groups.get(("ponder", task)))
            found[name] = None if group is None else group.at(speed_up, name)
        for name in ("static", "static_taught"):
            cut = _cut(groups, task, speed_up, taught=name == "static_taught")
            found[name] = None if cut is None else statistics.median(cut.scores)
    return {name: None if score is None else round(score, 6) for name, score in found.items()}


def _macro(found: Mapping[str, _Scores], common: Sequence[str]) -> _Scores:
    """Return each recipe's mean score over the tasks in `common`; None where it lacks one of them."""
    columns = {
        name: [score for task in common if (score := found[task][name]) is not None]
        for name in COMPARED
    }
    return {
        name: round(statistics.fmean(scores), 6) if scores and len(scores) == len(common) else None
        for name, scores in columns.items()
    }
