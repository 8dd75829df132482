"""The tables of the report: each is a function of the groups that are shown."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.glue.curves import SPEED_UPS
from benchmarks.glue.report.groups import (
    BLIND,
    NOT_AVERAGED,
    Group,
    Groups,
    averaged,
    by_task,
    label,
    ordered,
    policy_text,
    task_order,
)
from benchmarks.glue.results import Result
from benchmarks.tables import mark
from ponder import recipes
from ponder.pages import Block, Heading, Table, Text

_SWITCHES = ("q_exit", "own_lambda_lr", "deep_lambda", "hidden_concat")
_ABLATION = {
    "vanilla": None,
    "PonderNet": (False, False, False, False),
    "+ Q-exit": (True, False, False, False),
    "+ Q-exit, Lambda LR": (True, True, False, False),
    "+ Q-exit, Lambda LR, 3-layer Lambda": (True, True, True, False),
    "+ Q-exit, Lambda LR, hidden concat.": (True, True, False, True),
    "+ all four (PALBERT)": (True, True, True, True),
}
_EQUAL_COST = (
    "Scores of dev at one mean exit step, read off the curves over each policy's threshold, so that all pay the same; "
    "medians over the seeds. No label takes part in where a threshold is put. *its own* is the policy of the recipe "
    "for the task, and the other rows are other policies on the same models. *blind* is the best that can be had there "
    "without a look at the example, the same step for all or two by a coin (chosen by the score shown, so a little too "
    "good and out of competition): what tells examples apart should be ahead of it. *cut* is the encoder cut after k "
    "steps and fine-tuned so (recipe `static`); *cut and distilled* learned from the whole one instead. "
    "A dash is a curve that was not kept or does not reach so far."
)


def _grid(values: Mapping[tuple[Any, str], float | None], rows: Sequence[Any], common: Sequence[str]) -> pd.DataFrame:
    """Rows by tasks, and the mean over the tasks that count, NaN where a row lacks one of them."""
    tasks = task_order(task for _, task in values)
    cells = [[values.get((row, task)) for task in tasks] for row in rows]
    table = pd.DataFrame(cells, columns=tasks, dtype=float)
    return table.assign(macro=table[list(common)].mean(axis=1, skipna=False) if common else np.nan)


def scores(groups: Groups) -> list[Block]:
    """Table 1: the median of the seeds, the macro average, and the speed-up in steps."""
    common, names = averaged(groups), ordered(name for name, _ in groups)
    table = _grid({key: statistics.median(group.scores) for key, group in groups.items()}, names, common)
    speed = _grid({key: group.speed_up for key, group in groups.items()}, names, common)["macro"]
    rows = []
    for name, factor, *marked in zip(names, speed, *(mark(table[column]) for column in table), strict=True):
        of_name = [group for (other, _), group in groups.items() if other == name]
        counts = sorted(len(group.runs) for group in of_name)
        on_dev = any(run.selects_on_dev for group in of_name for run in group.runs)
        seeds = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        rows.append([name + " †" * on_dev, "–" if pd.isna(factor) else f"×{factor:.2f}", *marked, seeds])
    over = f"over {', '.join(common)}" if common else "none, since no task is there for half of the recipes"
    note = (
        "Median over the seeds of the score at the exits; the best is **bold**, the second <u>underlined</u>. Macro "
        f"average and speed-up in steps: {over}; a dash where a recipe lacks one of them. †: something was selected on "
        "dev, the split that is shown."
    )
    return [Heading("Scores", 3), Text(note), Table(["recipe", "×steps", *table.columns, "seeds"], rows)]


def ablation(groups: Groups) -> list[Block]:
    """Table 2: the mean ± the standard deviation (of a sample) over the seeds, as far as its rows were run."""
    found: dict[tuple[tuple[bool, ...] | None, str], Group] = {}
    for (name, task), group in groups.items():
        if name == "vanilla" or _switches(group.runs[0]) is not None:
            found.setdefault((_switches(group.runs[0]), task), group)
    tasks = task_order(group.task for group in groups.values() if is_ablation(group.runs[0]))

    def cell(group: Group | None) -> str:
        if group is None:
            return "–"
        mean = f"{statistics.fmean(group.scores):.1f}"
        return f"{mean} ± {statistics.stdev(group.scores):.1f}" if len(group.runs) > 1 else mean

    rows = [[title, *(cell(found.get((key, task))) for task in tasks)] for title, key in _ABLATION.items()]
    note = "Mean ± standard deviation over the seeds (no deviation where there is one seed)."
    return [Heading("Ablation", 3), Text(note), Table(["configuration", *tasks], rows)] if tasks else []


def is_ablation(result: Result) -> bool:
    """Whether a run is of a row of the ablation that is no recipe of its own: some of the switches are off."""
    return result["recipe"] == "palbert" and not all(_switches(result) or [True])


def _switches(result: Result) -> tuple[bool, ...] | None:
    """PALBERT's four switches, where the run is PALBERT or PonderNet with the paper's other arguments."""
    options: Mapping[str, Any] = result["config"]["recipe_options"]
    if result["config"]["policy"] or set(options) - set(_SWITCHES):
        return None
    if result["recipe"] == "pondernet":
        return (False, False, False, False)
    defaults = inspect.signature(recipes.palbert).parameters
    switches = tuple(bool(options.get(name, defaults[name].default)) for name in _SWITCHES)
    return switches if result["recipe"] == "palbert" else None


def equal_cost(groups: Groups) -> list[Block]:
    """Every recipe with every policy that its curves know, and the encoder cut short, a table for each speed-up."""
    blocks: list[Block] = []
    for speed_up in SPEED_UPS:
        found = dict(at_equal_cost(groups, speed_up))
        if found:
            common = [task for task in task_order(task for _, task in found) if task not in NOT_AVERAGED]
            rows = list(dict.fromkeys(row for row, _ in found))
            table = _grid(found, rows, common)
            columns = [mark(table[name], [policy != BLIND for _, policy in rows]) for name in table]
            cells = [[*row, *values] for row, *values in zip(rows, *columns, strict=True)]
            over = f"macro over {', '.join(common)}" if common else "no macro"
            blocks += [Text(f"*×{speed_up:g} in steps; {over}*"), Table(["recipe", "policy", *table.columns], cells)]
    return [Heading("At the same cost", 3), Text(_EQUAL_COST), *blocks] if blocks else []


def at_equal_cost(groups: Groups, speed_up: float) -> Iterator[tuple[tuple[tuple[str, str], str], float]]:
    """((recipe, policy), task) and the score there, as far as it is known.

    `("static", "cut")` is the encoder cut and fine-tuned so, `("static", "cut and distilled")` the one that learned
    from the whole encoder.
    """
    recipes_by_task = itertools.product(ordered(name for name, _ in groups), task_order(task for _, task in groups))
    for group in (groups[key] for key in recipes_by_task if key in groups):
        if group.is_cut and abs(group.speed_up - speed_up) < 1e-6:
            named = "cut and distilled" if group.is_distilled else "cut"
            yield (("static", named), group.task), statistics.median(group.scores)
        for policy in [*group.policies, BLIND] if group.policies else []:
            score = group.at(speed_up, policy)
            if score is not None:
                named = "its own" if policy == group.own_policy else policy
                yield ((group.label, named), group.task), score


def published() -> list[Block]:
    """What papers report, to stand beside ours: another backbone, and not comparable digit by digit."""
    blocks: list[Block] = [Heading("Published, on ALBERT-base")]
    for source in json.loads((Path(__file__).parents[1] / "published.json").read_text(encoding="utf-8")):
        table = pd.json_normalize(source["rows"]).rename(columns=lambda name: name.removeprefix("scores."))
        tasks = [name for name in task_order(table) if name not in ("method", "speed_up_steps", "macro")]
        shown = pd.DataFrame({"method": table["method"] + " *(published)*"})
        if "speed_up_steps" in table:
            shown["×steps"] = table["speed_up_steps"].map("×{:.2f}".format)
        shown = shown.join(table[[*tasks, *(["macro"] if "macro" in table else [])]].astype(str))
        blocks += [Text(f"[{source['source']}]({source['url']}):"), Table(list(shown), shown.to_numpy().tolist())]
    return blocks


def out_of_scope(groups: Groups) -> list[Block]:
    """What takes no part in the score: the share of examples out of scope that is told, where a task has such."""
    rows = []
    for task, of_task in by_task(groups):
        for group in of_task:
            told = [statistics.median(_told(run, where) for run in group.runs) for where in ("full_depth", "exits")]
            if all(map(math.isfinite, told)):
                full, exits = (f"{share:.1f}" for share in told)  # of a cut encoder the last step is not trained
                rows.append([task, group.label, "–" if group.is_cut else full, exits, str(len(group.runs))])
    note = (
        "Of the examples that belong to none of the classes, the percentage that is told, the median over the seeds; "
        "the score leaves them out."
    )
    head = ["task", "recipe", "at full depth", "at the exits", "seeds"]
    return [Heading("Out of scope", 3), Text(note), Table(head, rows)] if rows else []


def _told(run: Result, where: str) -> float:
    """Recall of what is out of scope on what is reported, in percent; NaN where the task has none."""
    return 100 * statistics.fmean(split[where].get("out_of_scope_recall", math.nan) for split in run.reported)


def runs(results: Sequence[Result]) -> list[Block]:
    """One line a run, by task, recipe and seed."""
    order = task_order(result["task"] for result in results)
    rows = []
    for result in sorted(results, key=lambda r: (order.index(r["task"]), label(r), r["config"]["seed"])):
        epochs = " + ".join(str(stage["epochs"]) for stage in result["training"])
        policy = f"`{policy_text(result['policy'])}`"
        rows.append([result["task"], label(result), policy, str(result["config"]["seed"]), epochs, *numbers(result)])
    head = ["task", "recipe", "policy", "seed", "epochs", "score at full depth", "score at exits", "mean exit step"]
    return [Heading("Every run", 3), Table([*head, "×steps", "×FLOPs", "×wall-clock"], rows)]


def run_cells(result: Result, metrics: Sequence[str]) -> list[tuple[str, str]]:
    """One run, as names and values; what a task reports apart (out of scope) stands last."""
    full, exits, step, steps, flops, clock = numbers(result)
    told = _told(result, "exits")
    unit = f"%, {' and '.join(metric.replace('_', ' ') for metric in metrics)}"
    return [
        ("policy", policy_text(result["policy"])),
        ("at the exits", f"{exits} {unit}"),
        ("at full depth", f"{full} {unit}"),
        ("mean exit step", step),
        ("speed-up", f"{steps} in steps, {flops} in FLOPs, {clock} in seconds"),
        *([("out of scope", f"{told:.1f} % were told")] if math.isfinite(told) else []),
    ]


def numbers(result: Result) -> list[str]:
    """Scores at full depth and at the exits, mean exit step, and the speed-up in steps, FLOPs and wall-clock."""
    speed = result["speed_up"]
    return [
        f"{100 * result.score('full_depth'):.1f}",
        f"{100 * result.score('exits'):.1f}",
        f"{result.mean_exit_step:.2f} of {result['num_steps']}",
        *(f"×{speed[name]:.2f}" for name in ("steps", "flops", "wall_clock")),
    ]
