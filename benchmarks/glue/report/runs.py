"""Every run, one line each: for the terminal, and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table as RichTable

from benchmarks.glue.report.groups import label, policy_text, task_order
from benchmarks.glue.report.page import Table
from benchmarks.glue.results import Result

__all__ = ["every_run", "run_line", "run_table"]


def run_table(results: Sequence[Result]) -> RichTable:
    """One line a run, for the terminal: scores, mean exit step, and the speed-up in steps, FLOPs and wall-clock."""
    table = RichTable(box=SIMPLE, pad_edge=False)
    for name in ("task", "recipe"):
        table.add_column(name, no_wrap=True)
    table.add_column("policy", overflow="fold")  # the one that gives way on a narrow terminal
    for name in ("full\ndepth", "at\nexits", "exit\nstep", "×\nsteps", "×\nFLOPs", "×\nclock"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        table.add_row(result["task"], result["recipe"], policy_text(result["policy"]), *_numbers(result))
    return table


def run_line(result: Result) -> str:
    """One run in one line."""
    full, exits, step, *speeds = _numbers(result)
    steps, flops, clock = speeds
    return (
        f"{result['task']}, {label(result)} on {result['backbone']}, {policy_text(result['policy'])}: "
        f"{exits} at the exits and {full} at full depth; mean exit step {step}, "
        f"{steps} in steps, {flops} in FLOPs, {clock} in wall-clock"
    )


def every_run(results: Sequence[Result]) -> Table:
    """One line a run, by task, recipe and seed."""
    head = ["task", "recipe", "policy", "seed", "epochs", "score at full depth", "score at exits", "mean exit step"]
    head += ["×steps", "×FLOPs", "×wall-clock"]
    order = {task: place for place, task in enumerate(task_order(result["task"] for result in results))}
    rows = []
    for result in sorted(results, key=lambda r: (order[r["task"]], label(r), r["config"]["seed"])):
        epochs = " + ".join(str(stage["epochs"]) for stage in result["training"])
        policy = f"`{policy_text(result['policy'])}`"
        rows.append([result["task"], label(result), policy, str(result["config"]["seed"]), epochs, *_numbers(result)])
    return Table(head, rows)


def _numbers(result: Result) -> list[str]:
    speed = result["speed_up"]
    return [
        f"{100 * result.score('full_depth'):.1f}",
        f"{100 * result.score('exits'):.1f}",
        f"{result.mean_exit_step:.2f} of {result['num_steps']}",
        *(f"×{speed[name]:.2f}" for name in ("steps", "flops", "wall_clock")),
    ]
