"""Tables from results."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from benchmarks.glue.results import Result

__all__ = ["run_table"]


def run_table(results: Sequence[Result]) -> Table:
    """One line a run, for the terminal."""
    table = Table("task", "recipe", "backbone", "policy", "full depth", "at exits", "mean exit step")
    for name in ("steps", "FLOPs", "wall-clock"):
        table.add_column(f"speed-up ({name})", justify="right")
    for result in results:
        speed = result["speed_up"]
        table.add_row(
            result["task"],
            result["recipe"],
            result["backbone"],
            _policy(result),
            f"{100 * result.score('full_depth'):.1f}",
            f"{100 * result.score('exits'):.1f}",
            f"{result.mean_exit_step:.2f} of {result['num_steps']}",
            *(f"×{speed[name]:.2f}" for name in ("steps", "flops", "wall_clock")),
        )
    return table


def _policy(result: Result) -> str:
    fields = {key: value for key, value in result["policy"].items() if key != "name"}
    return result["policy"]["name"] + ("(" + ", ".join(f"{k}={v}" for k, v in fields.items()) + ")" if fields else "")
