"""Scores against cost, beside a smaller model at the same cost, and what overthinking costs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.glue.report.groups import Group, Groups, of_task, ordered, policy_text, task_order
from benchmarks.glue.report.page import Block, Heading, Table, Text
from ponder._utils.numerics import interpolate

__all__ = ["costs", "overthinking_table"]


def costs(groups: Groups) -> list[Block]:
    """A line for each recipe and task: the score, three speed-ups, and the static model of the same FLOPs."""
    labels = ordered(name for name, _ in groups)
    head = ["task", "recipe", "policy", "score", "×steps", "×FLOPs", "×wall-clock", "static at the same FLOPs"]
    rows = []
    for task in task_order(task for _, task in groups):
        shown = of_task(groups, task, labels)
        static = [group for group in shown if group.label == "vanilla" or group.example["recipe"] == "static"]
        rows += [_row(group, static) for group in shown]
    note = (
        "Medians over the seeds. The static model is the encoder cut after k steps and fine-tuned so (recipe "
        "`static`); its score at the FLOPs of a recipe lies on straight lines between the k that were run and "
        "`vanilla`, and a dash says that none was run that is as cheap."
    )
    if not any(group.example["recipe"] == "static" for group in groups.values()):
        head, rows = head[:-1], [row[:-1] for row in rows]
        note = "Medians over the seeds."
    return [Heading("Score and cost", 3), Text(note), Table(head, rows)]


def overthinking_table(groups: Groups) -> list[Block]:
    """Share of dev that is right at the last step, at any step, and at some step but not at the last."""
    labels = ordered(name for name, _ in groups)
    rows = []
    for task in task_order(task for _, task in groups):
        for group in of_task(groups, task, labels):
            splits = [
                split["overthinking"] for run in group.runs for split in run.reported if split.get("overthinking")
            ]
            if splits:
                last = [split["right"][-1] for split in splits]
                any_step = [split["right_by"][-1] for split in splits]
                lost = [split["lost"] for split in splits]
                rows.append([task, group.label, *(f"{100 * statistics.fmean(v):.1f}" for v in (last, any_step, lost))])
    if not rows:
        return []
    note = (
        "Percent of dev, means over the seeds. An exit that always chose the right step would score what stands under "
        "*right at some step*; what is lost by going on past it is overthinking (Kaya et al. 2019)."
    )
    head = ["task", "recipe", "right at the last step", "right at some step", "right at some, wrong at the last"]
    return [Heading("Overthinking", 3), Text(note), Table(head, rows)]


def _row(group: Group, static: Sequence[Group]) -> list[str]:
    policies = {policy_text(run["policy"]) for run in group.runs}
    policy = f"`{policies.pop()}`" if len(policies) == 1 else f"`{group.example['policy']['name']}(…)`"
    speeds = [f"×{group.speed_up(name):.2f}" for name in ("steps", "flops", "wall_clock")]
    return [group.task, group.label, policy, f"{group.score:.1f}", *speeds, _static_score(group, static)]


def _static_score(group: Group, static: Sequence[Group]) -> str:
    """Of the static model with the FLOPs of `group`."""
    cost = 1 / group.speed_up("flops")
    known = [1 / other.speed_up("flops") for other in static]
    if group in static or not known or not min(known) <= cost <= max(known):
        return "–"
    return f"{interpolate(known, [other.score for other in static], [cost])[0]:.1f}"
