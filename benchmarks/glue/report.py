"""Tables from results: for the terminal, and as Markdown for the documentation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.glue.results import Result
from benchmarks.glue.tasks import names
from ponder.errors import DataError

__all__ = ["markdown", "run_table"]

_PUBLISHED = Path(__file__).with_name("published.json")


def run_table(results: Sequence[Result]) -> Table:
    """One line a run, for the terminal."""
    table = Table("task", "recipe", "policy", "full depth", "at exits", "mean exit step")
    for name in ("steps", "FLOPs", "wall-clock"):
        table.add_column(f"speed-up\n{name}", justify="right")
    for result in results:
        table.add_row(result["task"], result["recipe"], describe_policy(result), *_numbers(result))
    return table


def markdown(results: Sequence[Result]) -> str:
    """The page of results: a table a backbone, the published numbers, every run, and how to read them.

    Args:
        results: As `results.read_all` gives them.

    Raises:
        DataError: There are none.
    """
    if not results:
        raise DataError("results: expected at least one; make some with `python -m benchmarks.glue run`.")
    backbones = sorted({str(result["backbone"]) for result in results})
    parts = ["# Results", "", _INTRODUCTION, ""]
    for backbone in backbones:
        of_backbone = [result for result in results if result["backbone"] == backbone]
        steps = sorted({result["num_steps"] for result in of_backbone})
        parts += [f"## `{backbone}`, {' / '.join(map(str, steps))} steps", "", *_scores(of_backbone), ""]
        parts += ["Every run:", "", *_runs(of_backbone), ""]
    return "\n".join([*parts, *_published(results), ""])


def describe_policy(result: Result) -> str:
    """The policy of a run as `name(field=value)`."""
    fields = ", ".join(f"{key}={value}" for key, value in result["policy"].items() if key != "name")
    return f"{result['policy']['name']}({fields})"


_INTRODUCTION = """\
Made by `python -m benchmarks.glue report` from the JSON files in `benchmarks/results/glue/`; nothing here is written
by hand.

* The *score* is GLUE's number on dev, in percent: Matthews correlation for CoLA, the mean of accuracy and F1 for MRPC
  and QQP, the mean of Pearson and Spearman correlation for STS-B, accuracy elsewhere.
* The epoch was selected on a part of train that was held out; dev was never used to choose anything. Policies are
  those of the recipes, not tuned.
* *Speed-up* is against running the same model to its last step, and is three numbers: in *steps* (N ÷ mean exit
  step), in *FLOPs* (counted on real calls, one example at a time at its true length) and in *wall-clock* (batches of
  similar length, timed in turn with full depth; the median of the pairs).
* A dash is a run that is not there. Entropy policies are not defined for the regression task STS-B."""


def _scores(results: Sequence[Result]) -> list[str]:
    """Recipes by tasks: the score at the exits, and the speed-up in steps; medians over seeds."""
    tasks = [task for task in names() if any(result["task"] == task for result in results)]
    rows = []
    for recipe in _recipes(results):
        cells = [recipe]
        for task in tasks:
            runs = [r for r in results if _label(r) == recipe and r["task"] == task and not r["config"]["policy"]]
            cells.append(_cell(runs))
        rows.append(cells)
    return _table(["recipe", *tasks], rows)


def _cell(runs: Sequence[Result]) -> str:
    if not runs:
        return "–"
    score = statistics.median(run.score("exits") for run in runs)
    speed = statistics.median(run["speed_up"]["steps"] for run in runs)
    return f"{100 * score:.1f} (×{speed:.2f})" + (f", {len(runs)} seeds" if len(runs) > 1 else "")


def _runs(results: Sequence[Result]) -> list[str]:
    head = ["task", "recipe", "policy", "seed", "epochs", "score at full depth", "score at exits", "mean exit step"]
    head += ["×steps", "×FLOPs", "×wall-clock"]
    order = {task: position for position, task in enumerate(names())}
    rows = []
    for result in sorted(results, key=lambda r: (order.get(r["task"], 99), r["recipe"], r["config"]["seed"])):
        epochs = " + ".join(str(stage["epochs"]) for stage in result["training"])
        policy = f"`{describe_policy(result)}`"
        rows.append([result["task"], _label(result), policy, str(result["config"]["seed"]), epochs, *_numbers(result)])
    return _table(head, rows)


def _numbers(result: Result) -> list[str]:
    speed = result["speed_up"]
    return [
        f"{100 * result.score('full_depth'):.1f}",
        f"{100 * result.score('exits'):.1f}",
        f"{result.mean_exit_step:.2f} of {result['num_steps']}",
        *(f"×{speed[name]:.2f}" for name in ("steps", "flops", "wall_clock")),
    ]


def _published(results: Sequence[Result]) -> list[str]:
    """What papers report, for the tasks that are here; another backbone, and not comparable digit by digit."""
    tasks = [task for task in names() if any(result["task"] == task for result in results)]
    parts = ["## Published, on ALBERT-base", ""]
    for source in json.loads(_PUBLISHED.read_text(encoding="utf-8")):
        kept = [task for task in tasks if task in source["rows"][0]]
        rows = [
            [f"{row['method']} *(published)*", f"×{row['speed_up_steps']:.2f}", *(str(row[task]) for task in kept)]
            for row in source["rows"]
        ]
        parts += [f"[{source['source']}]({source['url']}):", "", *_table(["method", "×steps", *kept], rows), ""]
    return parts[:-1]


def _recipes(results: Sequence[Result]) -> list[str]:
    """Recipes in the order of the paper's table, then the others by name."""
    known = ["vanilla", "pabee", "deebert", "fastbert", "pondernet", "palbert"]
    found = {_label(result) for result in results}
    return [recipe for recipe in known if recipe in found] + sorted(found - set(known))


def _label(result: Result) -> str:
    """The recipe, with the arguments that were given to it."""
    options = ", ".join(f"{key}={value}" for key, value in result["config"]["recipe_options"].items())
    return f"{result['recipe']} ({options})" if options else str(result["recipe"])


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]
