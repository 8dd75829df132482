"""Scores of all recipes and policies at one and the same mean exit step."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Sequence

from benchmarks.glue.curves import SPEED_UPS, read_curve
from benchmarks.glue.report.groups import Group, Groups, ordered, task_order
from benchmarks.glue.report.page import Block, Heading, Table, Text
from benchmarks.glue.report.scores import NOT_AVERAGED, macro, mark
from benchmarks.glue.results import Result
from ponder._utils.numerics import interpolate

__all__ = ["at_speed_up", "equal_cost", "of_held_out"]

_OWN, _BLIND, _CUT = "its own", "blind", "cut"
_Row = tuple[str, str]
_NOTE = (
    "Scores of dev at one mean exit step, read off the curves over each policy's knob on straight lines between "
    "knobs, so that all pay the same; medians over the seeds. No label takes part in where a knob is put. *its "
    "own* is the policy of the recipe for the task, and the other rows are other policies on the same models. *blind* "
    "is the best that can be had there without a look at the example, the same step for all or two by a coin (chosen "
    "by the score shown, so a little too good and out of competition; on straight lines between steps): what tells "
    "examples apart should be ahead of it. "
    "*cut* is the encoder cut after k steps and fine-tuned so (recipe `static`), on lines between the k that were "
    "run and `vanilla`. A dash is a curve that was not kept or does not reach so far, or a macro that lacks a task; "
    "a policy that is the recipe's own on some tasks has those in its row too."
)
_HELD_OUT_NOTE = (
    "The same on what was held out of train, by which recipes and policies are chosen. The epoch was chosen on it "
    "too, so its scores are a little too good."
)


def equal_cost(groups: Groups) -> list[Block]:
    """Every recipe with every policy that its curves know, and the encoder cut short: on dev, and on what was held out.

    Each has a table for each speed-up. No knob is chosen on dev; the tables of the held-out part are there for choices.
    """
    on_dev = _tables(groups)
    if not on_dev:
        return []
    blocks: list[Block] = [Heading("At the same cost", 3), Text(_NOTE), *on_dev]
    views = {key: of_held_out(group) for key, group in groups.items()}
    on_held_out = _tables({key: view for key, view in views.items() if view is not None})
    if on_held_out:
        blocks += [Heading("At the same cost, on the held-out part of train", 3), Text(_HELD_OUT_NOTE), *on_held_out]
    return blocks


def _tables(groups: Groups) -> list[Block]:
    tables: list[Block] = []
    for speed_up in SPEED_UPS:
        scores = {(row, task): score for row, task, score in _scores(groups, speed_up)}
        rows = list(dict.fromkeys(row for row, _ in scores))
        tasks = task_order(task for _, task in scores)
        if rows:
            common = [task for task in tasks if task not in NOT_AVERAGED]
            columns = [[scores.get((row, task)) for row in rows] for task in tasks]
            columns.append([macro(scores, row, common) for row in rows])
            competing = [policy != _BLIND for _, policy in rows]
            cells = zip(*(mark(column, competing) for column in columns), strict=True)
            table = [[recipe, policy, *each] for (recipe, policy), each in zip(rows, cells, strict=True)]
            over = f"macro over {', '.join(common)}" if common else "no macro"
            tables += [Text(f"*×{speed_up:g} in steps; {over}*"), Table(["recipe", "policy", *tasks, "macro"], table)]
    return tables


def of_held_out(group: Group) -> Group | None:
    """The same runs, reporting what was held out; None where nothing was."""
    views = [run.held_out for run in group.runs]
    found = tuple(view for view in views if view is not None)
    return dataclasses.replace(group, runs=found) if found else None


def _scores(groups: Groups, speed_up: float) -> Iterator[tuple[_Row, str, float]]:
    for label in ordered(name for name, _ in groups):
        of_label = {task: groups[label, task] for task in task_order(task for name, task in groups if name == label)}
        own = {group.example["policy"]["name"] for group in of_label.values()}
        for task, group in of_label.items():
            for policy in _policies(group):
                score = at_speed_up(group, policy, speed_up)
                if score is not None:
                    if policy == group.example["policy"]["name"]:
                        yield (label, _OWN), task, score
                    if policy != group.example["policy"]["name"] or len(own) > 1:
                        yield (label, policy), task, score
    for task in task_order(task for _, task in groups):
        score = _cut(groups, task, speed_up)
        if score is not None:
            yield ("static", _CUT), task, score


def _policies(group: Group) -> list[str]:
    """Policies that have a curve, the recipe's own first, and then what does without a policy."""
    entries = (entry for run in group.runs for split in run.reported for entry in split.get("curves") or [])
    curves = list(dict.fromkeys(entry["policy"] for entry in entries))
    return [*curves, _BLIND] if curves else []


def at_speed_up(group: Group, policy: str, speed_up: float) -> float | None:
    """A policy's score at a speed-up in steps, the median over the seeds; None where a curve does not reach so far."""
    found = [_of_run(run, policy, run["num_steps"] / speed_up) for run in group.runs]
    known = [100 * score for score in found if score is not None]
    return statistics.median(known) if len(known) == len(found) else None


def _of_run(run: Result, policy: str, at: float) -> float | None:
    if policy == _BLIND:
        return _blind(run.per_step, at)
    curve = read_curve(run, policy)
    steps = [] if curve is None else [point.mean_exit_step for point in curve.points]
    if curve is None or not min(steps) <= at <= max(steps):
        return None
    return interpolate(steps, [point.score for point in curve.points], [at])[0]


def _blind(scores: Sequence[float], at: float) -> float | None:
    """The best mixture of two steps with the mean `at`, from the score of each step."""
    pairs = itertools.combinations(enumerate(scores, start=1), 2)
    mixed = [interpolate([i, j], [first, second], [at])[0] for (i, first), (j, second) in pairs if i <= at <= j]
    return max(mixed, default=None)


def _cut(groups: Groups, task: str, speed_up: float) -> float | None:
    cut = [group for (_, of), group in groups.items() if of == task and group.example["recipe"] == "static"]
    whole = groups.get(("vanilla", task))
    known = [*cut, *([] if whole is None else [whole])]
    shares = [1 / group.speed_up("steps") for group in known]
    if not cut or not min(shares) <= 1 / speed_up <= max(shares):
        return None
    return interpolate(shares, [group.score for group in known], [1 / speed_up])[0]
