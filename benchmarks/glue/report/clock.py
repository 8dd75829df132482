"""What saved steps are worth in wall-clock, for every policy that a kept model was timed with."""

from __future__ import annotations

from benchmarks.glue.clock import read_clock
from benchmarks.glue.report.groups import Groups, of_task, ordered, task_order
from benchmarks.glue.report.page import Block, Heading, Table, Text

__all__ = ["clock_table"]

_NOTE = (
    "Kept models with every policy, in turn with full depth on the same batches of dev (`python -m benchmarks.glue "
    "clock`): the median of the pairs, with their range. Score, steps and FLOPs are those of the run on all of dev, at "
    "this knob."
)


def clock_table(groups: Groups) -> list[Block]:
    """A line for each policy and knob that was timed."""
    labels = ordered(name for name, _ in groups)
    rows = []
    for task in task_order(task for _, task in groups):
        for group in of_task(groups, task, labels):
            for run in group.runs:
                for timed in read_clock(run):
                    point = timed.point
                    speeds = (run["num_steps"] / point.mean_exit_step, 1 / point.cost, timed.wall_clock)
                    shown = [f"{100 * point.score:.1f}", *(f"×{speed:.2f}" for speed in speeds)]
                    policy = f"`{timed.policy}`, {point.threshold:.3g}"
                    rows.append([task, group.label, policy, *shown, f"{timed.low:.2f}–{timed.high:.2f}"])
    if not rows:
        return []
    head = ["task", "recipe", "policy, knob", "score", "×steps", "×FLOPs", "×wall-clock", "range"]
    return [Heading("Steps and seconds", 3), Text(_NOTE), Table(head, rows)]
