"""The tables of the report: each is a function of the groups that are shown."""

from __future__ import annotations

import inspect
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table as RichTable

from benchmarks.glue.report.groups import (
    BLIND,
    Group,
    Groups,
    by_task,
    label,
    labels_of,
    policy_text,
    task_order,
    threshold_chosen,
)
from benchmarks.glue.results import Result
from benchmarks.glue.thresholds import SPEED_UPS
from benchmarks.page import Block, Heading, Table, Text
from ponder import recipes

NOT_AVERAGED = ("WNLI",)  # as in the papers: its dev holds sentences of train with the other label
_PUBLISHED = Path(__file__).parents[1] / "published.json"
_SWITCHES = ("q_exit", "own_lambda_lr", "deep_lambda", "hidden_concat")
_Switches = tuple[bool, ...]
_ABLATION: tuple[tuple[str, _Switches | str], ...] = (
    ("vanilla", "vanilla"),
    ("PonderNet", (False, False, False, False)),
    ("+ Q-exit", (True, False, False, False)),
    ("+ Q-exit, Lambda LR", (True, True, False, False)),
    ("+ Q-exit, Lambda LR, 3-layer Lambda", (True, True, True, False)),
    ("+ Q-exit, Lambda LR, hidden concat.", (True, True, False, True)),
    ("+ all four (PALBERT)", (True, True, True, True)),
)
_EQUAL_COST = (
    "Scores of dev at one mean exit step, read off the curves over each policy's threshold, so that all pay the same; "
    "medians over the seeds. No label takes part in where a threshold is put. *its own* is the policy of the recipe for "
    "the task, and the other rows are other policies on the same models. *blind* is the best that can be had there "
    "without a look at the example, the same step for all or two by a coin (chosen by the score shown, so a little too "
    "good and out of competition): what tells examples apart should be ahead of it. *cut* is the encoder cut after k "
    "steps and fine-tuned so (recipe `static`). A dash is a curve that was not kept or does not reach so far."
)


def _shown(value: float | None) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:.1f}"


def mark(values: Sequence[float | None] | pd.Series, competing: Sequence[bool] | None = None) -> list[str]:
    """A column with its best value bold and its second underlined, as they are printed: ties share a mark.

    Example:
        >>> mark([56.61, 58.1, 56.58, None])
        ['<u>56.6</u>', '**58.1**', '<u>56.6</u>', '–']
    """
    printed = [_shown(value) for value in values]
    places = [True] * len(printed) if competing is None else competing
    ranks = sorted({float(text) for text, can in zip(printed, places, strict=True) if can and text != "–"})[::-1]
    if len(ranks) < 2:
        return printed
    form = {f"{ranks[0]:.1f}": "**{}**", f"{ranks[1]:.1f}": "<u>{}</u>"}
    return [form.get(t, "{}").format(t) if can else t for t, can in zip(printed, places, strict=True)]


def _grid(values: Mapping[tuple[Any, str], float | None], rows: Sequence[Any], common: Sequence[str]) -> pd.DataFrame:
    """Rows by tasks, and the mean over the tasks that count, NaN where a row lacks one of them."""
    tasks = task_order(task for _, task in values)
    cells = [[values.get((row, task)) for task in tasks] for row in rows]
    table = pd.DataFrame(cells, columns=tasks, index=pd.Index(rows, tupleize_cols=False), dtype=float)
    return table.assign(macro=table[list(common)].mean(axis=1, skipna=False) if common else np.nan)


def averaged(groups: Groups) -> list[str]:
    """The tasks of the macro average: those that more than half of the recipes have, WNLI left out."""
    names = {name for name, _ in groups}
    tasks = task_order(task for _, task in groups if task not in NOT_AVERAGED)
    return [task for task in tasks if 2 * sum((name, task) in groups for name in names) > len(names)]


def scores(groups: Groups) -> list[Block]:
    """Table 1: the median of the seeds, the macro average, and the speed-up in steps."""
    common, names = averaged(groups), labels_of(groups)
    table = _grid({key: group.score for key, group in groups.items()}, names, common)
    speed = _grid({key: group.speed_up for key, group in groups.items()}, names, common)["macro"]
    rows = []
    for name, *marked in zip(names, *(mark(table[column]) for column in table), strict=True):
        of_name = [group for (other, _), group in groups.items() if other == name]
        counts = sorted(len(group.runs) for group in of_name)
        seeds = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        factor = "–" if pd.isna(speed[name]) else f"×{speed[name]:.2f}"
        rows.append([name + " †" * any(group.on_dev for group in of_name), factor, *marked, seeds])
    over = f"over {', '.join(common)}" if common else "none, since no task is there for more than half of the recipes"
    note = (
        "Median over the seeds of the score at the exits; the best is **bold**, the second <u>underlined</u>. Macro "
        f"average and speed-up in steps: {over}; a dash where a recipe lacks one of them."
    )
    if any(group.on_dev for group in groups.values()):
        note += " Of recipes with † hyper-parameters or epochs were selected on dev, the split that is shown."
    return [Heading("Scores", 3), Text(note), Table(["recipe", "×steps", *table.columns, "seeds"], rows)]


def ablation(groups: Groups) -> list[Block]:
    """Table 2: the mean ± the standard deviation (of a sample) over the seeds, as far as its rows were run."""
    found: dict[tuple[_Switches | str, str], Group] = {}
    for (name, task), group in groups.items():
        row: _Switches | str | None = "vanilla" if name == "vanilla" else _switches(group.example)
        if row is not None and (group.example["recipe"] != "palbert" or (row, task) not in found):
            found[row, task] = group
    tasks = task_order(group.task for group in groups.values() if is_ablation(group.example))

    def cell(group: Group | None) -> str:
        if group is None:
            return "–"
        mean = f"{statistics.fmean(group.scores):.1f}"
        return f"{mean} ± {statistics.stdev(group.scores):.1f}" if len(group.runs) > 1 else mean

    if not tasks:
        return []
    rows = [[title, *(cell(found.get((key, task))) for task in tasks)] for title, key in _ABLATION]
    note = "Mean ± standard deviation over the seeds (no deviation where there is one seed)."
    return [Heading("Ablation", 3), Text(note), Table(["configuration", *tasks], rows)]


def is_ablation(result: Result) -> bool:
    """Whether a run is of a row of the ablation that is no recipe of its own: some of the switches are off."""
    row = _switches(result)
    return result["recipe"] == "palbert" and row is not None and not all(row)


def _switches(result: Result) -> _Switches | None:
    """PALBERT's four switches, where the run is PALBERT or PonderNet with the paper's other arguments."""
    options: Mapping[str, Any] = result["config"]["recipe_options"]
    if result["config"]["policy"] or threshold_chosen(result):
        return None
    if result["recipe"] == "pondernet":
        return None if options else (False, False, False, False)
    if result["recipe"] != "palbert" or set(options) - set(_SWITCHES):
        return None
    defaults = inspect.signature(recipes.palbert).parameters
    return tuple(bool(options.get(name, defaults[name].default)) for name in _SWITCHES)


def equal_cost(groups: Groups) -> list[Block]:
    """Every recipe with every policy that its curves know, and the encoder cut short, a table for each speed-up."""
    blocks: list[Block] = []
    for speed_up in SPEED_UPS:
        found = {(row, task): score for row, task, score in _at_equal_cost(groups, speed_up) if score is not None}
        if found:
            common = [task for task in task_order(task for _, task in found) if task not in NOT_AVERAGED]
            rows = list(dict.fromkeys(row for row, _ in found))
            table = _grid(found, rows, common)
            competing = [policy != BLIND for _, policy in rows]
            columns = [mark(table[name], competing) for name in table]
            cells = [[*row, *values] for row, *values in zip(rows, *columns, strict=True)]
            over = f"macro over {', '.join(common)}" if common else "no macro"
            blocks += [Text(f"*×{speed_up:g} in steps; {over}*"), Table(["recipe", "policy", *table.columns], cells)]
    return [Heading("At the same cost", 3), Text(_EQUAL_COST), *blocks] if blocks else []


def _at_equal_cost(groups: Groups, speed_up: float) -> Iterator[tuple[tuple[str, str], str, float | None]]:
    for name in labels_of(groups):
        of_name = [groups[name, task] for task in task_order(task for other, task in groups if other == name)]
        several = len({group.own_policy for group in of_name}) > 1
        for group in of_name:
            for policy in [*group.policies, BLIND] if group.policies else []:
                score = group.at(speed_up, policy)
                if policy == group.own_policy:
                    yield (name, "its own"), group.task, score
                if policy != group.own_policy or several:
                    yield (name, policy), group.task, score
    for task, _ in by_task(groups):
        yield ("static", "cut"), task, cut_at(groups, task, speed_up)


def cut_at(groups: Groups, task: str, speed_up: float) -> float | None:
    """The score of the encoder that was cut where it costs as much, and fine-tuned so; None where it was not."""
    cut = [group for group in groups.values() if group.example["recipe"] == "static" and group.task == task]
    return next((group.score for group in cut if abs(group.speed_up - speed_up) < 1e-6), None)


def published() -> list[Block]:
    """What papers report, to stand beside ours: another backbone, and not comparable digit by digit."""
    blocks: list[Block] = [Heading("Published, on ALBERT-base")]
    for source in json.loads(_PUBLISHED.read_text(encoding="utf-8")):
        tasks = task_order(source["rows"][0]["scores"])
        macro, speed = (any(name in row for row in source["rows"]) for name in ("macro", "speed_up_steps"))
        rows = [
            [
                f"{row['method']} *(published)*",
                *([f"×{row['speed_up_steps']:.2f}"] if speed else []),
                *(str(row["scores"][task]) for task in tasks),
                *([str(row["macro"])] if macro else []),
            ]
            for row in source["rows"]
        ]
        head = ["method", *["×steps"] * speed, *tasks, *["macro"] * macro]
        blocks += [Text(f"[{source['source']}]({source['url']}):"), Table(head, rows)]
    return blocks


def runs(results: Sequence[Result]) -> list[Block]:
    """One line a run, by task, recipe and seed."""
    order = {task: place for place, task in enumerate(task_order(result["task"] for result in results))}
    rows = []
    for result in sorted(results, key=lambda r: (order[r["task"]], label(r), r["config"]["seed"])):
        epochs = " + ".join(str(stage["epochs"]) for stage in result["training"])
        policy = f"`{policy_text(result['policy'])}`"
        rows.append([result["task"], label(result), policy, str(result["config"]["seed"]), epochs, *_numbers(result)])
    head = ["task", "recipe", "policy", "seed", "epochs", "score at full depth", "score at exits", "mean exit step"]
    return [Heading("Every run", 3), Table([*head, "×steps", "×FLOPs", "×wall-clock"], rows)]


def run_table(results: Sequence[Result]) -> RichTable:
    """One line a run, for the terminal: scores, mean exit step, and the speed-up in steps, FLOPs and wall-clock."""
    table = RichTable(box=SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("task", no_wrap=True)
    table.add_column("recipe\nand policy", overflow="fold")  # the one that gives way on a narrow terminal
    for name in ("full\ndepth", "at\nexits", "exit\nstep", "×\nsteps", "×\nFLOPs", "×\nclock"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        policy = policy_text(result["policy"])
        table.add_row(result["task"], f"{result['recipe']}\n[dim]{escape(policy)}[/dim]", *_numbers(result))
    return table


def run_line(result: Result) -> str:
    """One run in one line; what a task reports apart (out of scope) is said at its end."""
    full, exits, step, steps, flops, clock = _numbers(result)
    apart = [split["exits"].get("out_of_scope_recall") for split in result.reported]
    known = [100 * share for share in apart if share is not None]
    return (
        f"{result['task']}, {label(result)} on {result['backbone']}, {policy_text(result['policy'])}: "
        f"{exits} at the exits and {full} at full depth; mean exit step {step}, "
        f"{steps} in steps, {flops} in FLOPs, {clock} in wall-clock"
        + (f"; of what is out of scope {statistics.fmean(known):.1f} was told" if known else "")
    )


def _numbers(result: Result) -> list[str]:
    speed = result["speed_up"]
    return [
        f"{100 * result.score('full_depth'):.1f}",
        f"{100 * result.score('exits'):.1f}",
        f"{result.mean_exit_step:.2f} of {result['num_steps']}",
        *(f"×{speed[name]:.2f}" for name in ("steps", "flops", "wall_clock")),
    ]
