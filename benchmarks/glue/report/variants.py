"""Recipes with arguments of their own, each beside the recipe as it is: what its parts are worth."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.glue.curves import SPEED_UPS
from benchmarks.glue.report.equal_cost import at_speed_up, of_held_out
from benchmarks.glue.report.groups import Group, Groups, ordered, task_order
from benchmarks.glue.report.page import Block, Heading, Table, Text
from benchmarks.glue.report.scores import is_ablation
from benchmarks.glue.results import Result

__all__ = ["is_variant", "variants"]

_SPEED_UPS = SPEED_UPS[:2]
_NOTE = (
    "Recipes with other arguments than their own, below the recipe as it is. Scores at the exits, and at the same mean "
    "exit step with the recipe's policy, on dev and on what was held out of train; medians over the seeds."
)


def variants(groups: Groups) -> list[Block]:
    """A line for each variant of a recipe on each task, below that of the recipe."""
    rows = [row for task in task_order(task for _, task in groups) for row in _rows(groups, task)]
    if not rows:
        return []
    head = ["task", "recipe", "score", "×steps"]
    head += [f"{where} at ×{speed_up:g}" for where in ("dev", "held out") for speed_up in _SPEED_UPS]
    return [Heading("Variants", 3), Text(_NOTE), Table([*head, "seeds"], rows)]


def is_variant(result: Result, groups: Groups) -> bool:
    """Whether a run has other arguments than its recipe, which is there too; those of the ablation have their table."""
    # Of `static` none is the recipe as it is: every k is a model of its own.
    others = result["recipe"] != "static" and result["config"]["recipe_options"] and not is_ablation(result)
    return bool(others) and (result["recipe"], result["task"]) in groups


def _rows(groups: Groups, task: str) -> Iterator[list[str]]:
    of_task = {name: groups[name, task] for name in ordered(name for name, of in groups if of == task)}
    for name, group in of_task.items():
        others = [
            other for other in of_task.values() if other.example["recipe"] == name and is_variant(other.example, groups)
        ]
        yield from map(_row, [group, *others] if others else [])


def _row(group: Group) -> list[str]:
    own = group.example["policy"]["name"]
    views = (group, of_held_out(group))
    scores = [None if view is None else at_speed_up(view, own, speed) for view in views for speed in _SPEED_UPS]
    shown = ["–" if score is None else f"{score:.1f}" for score in scores]
    speed_up = f"×{group.speed_up('steps'):.2f}"
    return [group.task, group.label, f"{group.score:.1f}", speed_up, *shown, str(len(group.runs))]
