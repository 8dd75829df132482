"""The tables of the report: each is a function of the groups that are shown."""

from __future__ import annotations

import inspect
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table as RichTable

from benchmarks.glue.latency import read_timings
from benchmarks.glue.report.groups import (
    BLIND,
    Group,
    Groups,
    at_speed_up,
    by_task,
    each,
    held_out_view,
    interpolate,
    label,
    labels_of,
    policy_text,
    task_order,
    threshold_chosen,
)
from benchmarks.glue.report.notes import NOTES
from benchmarks.glue.results import Result
from benchmarks.glue.thresholds import SPEED_UPS
from ponder import recipes
from ponder.pages import Block, Heading, Table, Text

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


def _titled(title: str, note: str, head: str, rows: Sequence[Sequence[str]]) -> list[Block]:
    """A table below its heading and note, where it has rows; the names of its columns are joined by " | "."""
    return [Heading(title, 3), Text(note), Table(head.split(" | "), rows)] if rows else []


def _of_each(groups: Groups, cells: Callable[[Group], Sequence[str] | None]) -> list[list[str]]:
    """A row for each group that has something to tell, in the order of tasks and recipes."""
    told = ((group, cells(group)) for group in each(groups))
    return [[group.task, group.label, *found] for group, found in told if found is not None]


def _means(columns: Iterable[Iterable[float]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*columns, strict=True)]


def _shown(value: float | None, form: str = ".1f") -> str:
    return "–" if value is None or pd.isna(value) else f"{value:{form}}"


def _grid(values: Mapping[tuple[Any, str], float | None]) -> pd.DataFrame:
    """Rows by tasks, the latter in order."""
    rows = list(dict.fromkeys(row for row, _ in values))
    tasks = task_order(task for _, task in values)
    table = pd.DataFrame([[values.get((row, task)) for task in tasks] for row in rows], columns=tasks, dtype=float)
    return table.set_axis(pd.Index(rows, tupleize_cols=False))


def scores(groups: Groups) -> list[Block]:
    """Table 1: the median of the seeds, the macro average, and the speed-up in steps.

    The macro average and the speed-up of a recipe are means over the tasks that more than half of the recipes have,
    WNLI left out; a recipe that lacks one of these has none.
    """
    common, names = averaged(groups), labels_of(groups)
    table = _with_macro(_grid({key: group.score for key, group in groups.items()}), common).loc[names]
    speed = _with_macro(_grid({key: group.speed_up("steps") for key, group in groups.items()}), common)["macro"]
    marked, rows = table.apply(mark), []
    for name in names:
        of_name = [group for (other, _), group in groups.items() if other == name]
        counts = sorted({len(group.runs) for group in of_name})
        seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
        factor = "–" if pd.isna(speed[name]) else f"×{speed[name]:.2f}"
        rows.append([name + " †" * any(group.on_dev for group in of_name), factor, *marked.loc[name], seeds])
    over = f"over {', '.join(common)}" if common else "none, since no task is there for more than half of the recipes"
    note = NOTES["scores"].format(over=over)
    note += f" {NOTES['scores, on dev']}" if any(group.on_dev for group in groups.values()) else ""
    return _titled("Scores", note, " | ".join(["recipe", "×steps", *table.columns, "seeds"]), rows)


def averaged(groups: Groups) -> list[str]:
    """The tasks of the macro average: those that more than half of the recipes have, WNLI left out."""
    names = {name for name, _ in groups}
    tasks = task_order(task for _, task in groups if task not in NOT_AVERAGED)
    return [task for task in tasks if 2 * sum((name, task) in groups for name in names) > len(names)]


def _with_macro(table: pd.DataFrame, common: Sequence[str]) -> pd.DataFrame:
    """The mean over the tasks that count in a column of its own, NaN where a row lacks one of them."""
    return table.assign(macro=table[list(common)].mean(axis=1, skipna=False) if common else math.nan)


def mark(values: Sequence[float | None] | pd.Series, competing: Sequence[bool] | None = None) -> list[str] | pd.Series:
    """A column with its best value bold and its second underlined, as they are printed: ties share a mark.

    Example:
        >>> mark([56.61, 58.1, 56.58, None])
        ['<u>56.6</u>', '**58.1**', '<u>56.6</u>', '–']
    """
    printed = [_shown(value) for value in values]
    places = [True] * len(printed) if competing is None else competing
    ranks = sorted({float(text) for text, can in zip(printed, places, strict=True) if can and text != "–"})[::-1]
    if len(ranks) >= 2:
        form = {f"{ranks[0]:.1f}": "**{}**", f"{ranks[1]:.1f}": "<u>{}</u>"}
        printed = [form.get(t, "{}").format(t) if can else t for t, can in zip(printed, places, strict=True)]
    return pd.Series(printed, index=values.index) if isinstance(values, pd.Series) else printed


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

    rows = [[title, *(cell(found.get((key, task))) for task in tasks)] for title, key in _ABLATION] if tasks else []
    return _titled("Ablation", NOTES["ablation"], " | ".join(["configuration", *tasks]), rows)


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


def variants(groups: Groups) -> list[Block]:
    """Recipes with arguments of their own, each below the recipe as it is: what its parts are worth."""
    speed_ups, rows = SPEED_UPS[:2], []
    for _, shown in by_task(groups):
        for own in shown:
            others = [it for it in shown if is_variant(it.example, groups) and it.example["recipe"] == own.label]
            for group in [own, *others] if others else []:
                views = (group, held_out_view(group))
                at = [None if v is None else at_speed_up(v, group.own_policy, s) for v in views for s in speed_ups]
                numbers = [f"{group.score:.1f}", f"×{group.speed_up('steps'):.2f}", *map(_shown, at)]
                rows.append([group.task, group.label, *numbers, str(len(group.runs))])
    places = [f"{where} at ×{speed_up:g}" for where in ("dev", "held out") for speed_up in speed_ups]
    head = " | ".join(["task", "recipe", "score", "×steps", *places, "seeds"])
    return _titled("Variants", NOTES["variants"], head, rows)


def is_variant(result: Result, groups: Groups) -> bool:
    """Whether a run has other arguments than its recipe, which is there too; those of the ablation have their table."""
    # Of `static` none is the recipe as it is: every k is a model of its own.
    others = result["recipe"] != "static" and result["config"]["recipe_options"] and not is_ablation(result)
    return bool(others) and (result["recipe"], result["task"]) in groups


def equal_cost(groups: Groups) -> list[Block]:
    """Every recipe with every policy that its curves know, and the encoder cut short: on dev, and on what was held out.

    Each has a table for each speed-up. No threshold is chosen on dev; the tables of the held-out part are for choices.
    """
    views = {key: view for key, group in groups.items() if (view := held_out_view(group)) is not None}
    on_dev, on_held_out = _equal_cost_tables(groups), _equal_cost_tables(views)
    if not on_dev:
        return []
    blocks: list[Block] = [Heading("At the same cost", 3), Text(NOTES["equal cost"]), *on_dev]
    if on_held_out:
        blocks.append(Heading("At the same cost, on the held-out part of train", 3))
        blocks += [Text(NOTES["equal cost, held out"]), *on_held_out]
    return blocks


def _equal_cost_tables(groups: Groups) -> list[Block]:
    blocks: list[Block] = []
    for speed_up in SPEED_UPS:
        found = {(row, task): score for row, task, score in _equal_cost_scores(groups, speed_up)}
        if found:
            common = [task for task in task_order(task for _, task in found) if task not in NOT_AVERAGED]
            table = _with_macro(_grid(found), common)
            competing = [policy != BLIND for _, policy in table.index]
            marked = table.apply(lambda column, competing=competing: mark(column, competing))
            rows = [[*row, *marked.iloc[place]] for place, row in enumerate(table.index)]
            over = f"macro over {', '.join(common)}" if common else "no macro"
            blocks += [Text(f"*×{speed_up:g} in steps; {over}*"), Table(["recipe", "policy", *table.columns], rows)]
    return blocks


def _equal_cost_scores(groups: Groups, speed_up: float) -> Iterator[tuple[tuple[str, str], str, float]]:
    for name in labels_of(groups):
        of_name = {task: groups[name, task] for task in task_order(task for other, task in groups if other == name)}
        own = {group.own_policy for group in of_name.values()}
        for task, group in of_name.items():
            for policy in [*group.policies, BLIND] if group.policies else []:
                score = at_speed_up(group, policy, speed_up)
                if score is not None and policy == group.own_policy:
                    yield (name, "its own"), task, score
                if score is not None and (policy != group.own_policy or len(own) > 1):
                    yield (name, policy), task, score
    for task, shown in by_task(groups):
        static = [group for group in shown if group.example["recipe"] == "static"]
        known = [*static, *(group for group in shown if group.label == "vanilla")]
        shares = [1 / group.speed_up("steps") for group in known]
        if static and min(shares) <= 1 / speed_up <= max(shares):
            yield ("static", "cut"), task, interpolate(shares, [group.score for group in known], 1 / speed_up)


def costs(groups: Groups) -> list[Block]:
    """A line for each recipe and task: the score, three speed-ups, and the static model of the same FLOPs."""
    is_static = {key: key[0] == "vanilla" or group.example["recipe"] == "static" for key, group in groups.items()}

    def cells(group: Group) -> list[str]:
        texts = {policy_text(run["policy"]) for run in group.runs}
        policy = texts.pop() if len(texts) == 1 else f"{group.own_policy}(…)"
        speeds = [f"×{group.speed_up(name):.2f}" for name in ("steps", "flops", "wall_clock")]
        static = [other for key, other in groups.items() if is_static[key] and other.task == group.task]
        known, cost = [1 / other.speed_up("flops") for other in static], 1 / group.speed_up("flops")
        there = group not in static and known and min(known) <= cost <= max(known)
        beside = interpolate(known, [other.score for other in static], cost) if there else None
        return [f"`{policy}`", f"{group.score:.1f}", *speeds, _shown(beside)]

    rows, head = _of_each(groups, cells), "task | recipe | policy | score | ×steps | ×FLOPs | ×wall-clock"
    if any(group.example["recipe"] == "static" for group in groups.values()):
        return _titled("Score and cost", NOTES["costs"], f"{head} | static at the same FLOPs", rows)
    return _titled("Score and cost", "Medians over the seeds.", head, [row[:-1] for row in rows])


def timings(groups: Groups) -> list[Block]:
    """What saved steps are worth in wall-clock, for every policy and threshold that a kept model was timed with."""
    rows = []
    for group in each(groups):
        for run, timed in [(it, timed) for it in group.runs for timed in read_timings(it)]:
            point = timed.point
            speeds = (run["num_steps"] / point.mean_exit_step, 1 / point.cost, timed.wall_clock)
            numbers = [f"{100 * point.score:.1f}", *(f"×{speed:.2f}" for speed in speeds)]
            policy = f"`{timed.policy}`, {point.threshold:.3g}"
            rows.append([group.task, group.label, policy, *numbers, f"{timed.low:.2f}–{timed.high:.2f}"])
    head = "task | recipe | policy, threshold | score | ×steps | ×FLOPs | ×wall-clock | range"
    return _titled("Steps and seconds", NOTES["timings"], head, rows)


def gains(groups: Groups) -> list[Block]:
    """How much examples differ in what going on gains them, and whether halting head or answers know it."""

    def cells(group: Group) -> list[str] | None:
        found = group.reported("gains")
        if not found:
            return None
        mean, deviation = _means([each["mean"], each["deviation"]] for each in found)
        seen = [[each["halting"] for each in found], [step for each in found for step in each["unsure"] or []]]
        known = [[value for value in values if value is not None] for values in seen]
        correlations = [f"{statistics.fmean(values):+.2f}" if values else "–" for values in known]
        return [f"{mean:+.3f}", f"{deviation:.3f}", *correlations]

    head = "task | recipe | mean gain | deviation over examples | expected step and gain | unsure and gain"
    return _titled("Is there something to tell apart?", NOTES["gains"], head, _of_each(groups, cells))


def optimum(groups: Groups) -> list[Block]:
    """What Lambda heads learnt, beside what they could have learnt."""

    def cells(group: Group) -> list[str] | None:
        splits = [split for run in group.runs for split in run.reported if split.get("optimum")]
        if not splits:
            return None
        found = [split["optimum"] for split in splits]
        pmfs = [_means(split["halting"] for split in splits), _means(each["blind"] for each in found)]
        spreads = _means([each["spread_learnt"], each["spread_oracle"]] for each in found)
        return [*(" ".join(f"{mass:.2f}" for mass in pmf) for pmf in pmfs), *(f"{spread:.2f}" for spread in spreads)]

    head = "task | recipe | mean posterior, by step | optimum, blind | spread, learnt | spread, oracle"
    return _titled("What could the Lambda head learn?", NOTES["optimum"], head, _of_each(groups, cells))


def overthinking(groups: Groups) -> list[Block]:
    """Share of dev that is right at the last step, at any step, and at some step but not at the last."""

    def cells(group: Group) -> list[str] | None:
        found = group.reported("overthinking")
        shares = _means([each["right"][-1], each["right_by"][-1], each["lost"]] for each in found)
        return [f"{100 * share:.1f}" for share in shares] if found else None

    head = "task | recipe | right at the last step | right at some step | right at some, wrong at the last"
    return _titled("Overthinking", NOTES["overthinking"], head, _of_each(groups, cells))


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
