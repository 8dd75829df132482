"""The tables of the report: functions from the groups that are shown to Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.glue.report.groups import Group, Groups, label, ordered, task_order
from benchmarks.glue.results import Result
from benchmarks.markdown import spread, table

__all__ = ["ablation", "repeats", "run_rows", "runs", "scores"]

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


def scores(groups: Groups) -> str:
    """Table 1: scores at the exits, with their range over the seeds, and the speed-up in steps."""
    main = {key: group for key, group in groups.items() if not is_ablation(group.runs[0])}
    tasks = task_order(task for _, task in main)
    rows = []
    for name in ordered(name for name, _ in main):
        own = [main.get((name, task)) for task in tasks]
        here = [group for group in own if group is not None]
        factors = [group.speed_up for group in here]
        cells = ["–" if group is None else spread(group.scores) for group in own]
        rows.append([name, f"×{statistics.fmean(factors):.2f}", *cells])
    note = (
        "Median over the seeds of the score at the exits, in brackets the lowest and the highest. *×steps* is the mean "
        "over the tasks of a row."
    )
    return _part("Scores", note, table(["recipe", "×steps", *tasks], rows))


def ablation(groups: Groups) -> str:
    """Table 2 of PALBERT's paper: its four changes to PonderNet, as far as they were run."""
    found: dict[tuple[tuple[bool, ...] | None, str], Group] = {}
    for (name, task), group in groups.items():
        if name == "vanilla" or _switches(group.runs[0]) is not None:
            found.setdefault((_switches(group.runs[0]), task), group)
    tasks = task_order(group.task for group in groups.values() if is_ablation(group.runs[0]))
    rows = [
        [
            title,
            *(
                "–" if (key, task) not in found else spread(found[key, task].scores)
                for task in tasks
            ),
        ]
        for title, key in _ABLATION.items()
    ]
    note = "Median over the seeds, in brackets the lowest and the highest."
    return _part("Ablation", note, table(["configuration", *tasks], rows)) if tasks else ""


def is_ablation(result: Result) -> bool:
    """Whether a run is of a row of the ablation with some of PALBERT's switches off."""
    return result["recipe"] == "palbert" and not all(_switches(result) or [True])


def _switches(result: Result) -> tuple[bool, ...] | None:
    """Return PALBERT's four switches; None if the run is neither PALBERT nor PonderNet."""
    options: Mapping[str, Any] = result.config["recipe_options"]
    if (
        result.config["policy"]
        or set(options) - set(_SWITCHES)
        or result["recipe"] not in ("pondernet", "palbert")
    ):
        return None
    on = result["recipe"] == "palbert"
    return tuple(bool(options.get(name, on)) for name in _SWITCHES)


def runs(groups: Groups) -> str:
    """One line a run, by task, recipe and seed."""
    found = sorted(
        (run for group in groups.values() for run in group.runs),
        key=lambda run: (task_order(t for _, t in groups).index(run["task"]), label(run), run.seed),
    )
    rows = []
    for run in found:
        epochs = " + ".join(str(stage["epochs"]) for stage in run["training"])
        made = run["environment"]
        version = f"{made['versions'].get('ponder-torch')}, {made['commit']}"
        rows.append(
            [
                run["task"],
                label(run),
                f"`{_policy(run)}`",
                run.seed,
                epochs,
                *_numbers(run),
                version,
            ]
        )
    head = [
        "task",
        "recipe",
        "policy",
        "seed",
        "epochs",
        "at full depth",
        "at exits",
        "mean exit step",
    ]
    note = "The last column is the version and the commit that made a run."
    return _part(
        "Every run", note, table([*head, "×steps", "×FLOPs", "×wall-clock", "made by"], rows)
    )


def repeats(first: Sequence[Result], again: Sequence[Result]) -> str:
    """Runs that were done twice with the same seed, whose difference bounds what scores can show."""
    known = {result.path.stem: result for result in first if result.path is not None}
    rows = []
    for result in again:
        before = known.get("" if result.path is None else result.path.stem)
        if before is not None:
            one = 100 * before.score("exits")
            other = 100 * result.score("exits")
            rows.append(
                [
                    result["task"],
                    result["backbone"],
                    label(result),
                    result.seed,
                    f"{one:.1f}",
                    f"{other:.1f}",
                ]
            )
    return table(["task", "backbone", "recipe", "seed", "score", "again"], rows)


def run_rows(result: Result) -> list[tuple[str, str]]:
    """Return one run as names and values."""
    full, exits, step, steps, flops, clock = _numbers(result)
    recall = _recall(result, "exits")
    return [
        ("policy", _policy(result)),
        ("score at the exits", f"{exits} %"),
        ("score at full depth", f"{full} %"),
        ("mean exit step", step),
        ("speed-up", f"{steps} in steps, {flops} in FLOPs, {clock} in seconds"),
        *([("out of scope", f"{recall:.1f} % are recognised")] if math.isfinite(recall) else []),
    ]


def _part(title: str, note: str, *blocks: str) -> str:
    return "\n\n".join([f"### {title}", *([note] if note else []), *blocks])


def _policy(result: Result) -> str:
    fields = ", ".join(f"{key}={value}" for key, value in result["policy"].items() if key != "name")
    return f"{result['policy']['name']}({fields})"


def _recall(run: Result, where: str) -> float:
    """Return the recall of the rows out of scope in percent; NaN where the task has none."""
    return 100 * statistics.fmean(
        split[where].get("out_of_scope_recall", math.nan) for split in run.reported
    )


def _numbers(result: Result) -> list[str]:
    """Return scores at full depth and at the exits, mean exit step, and three speed-ups."""
    speed = result["speed_up"]
    return [
        f"{100 * result.score('full_depth'):.1f}",
        f"{100 * result.score('exits'):.1f}",
        f"{result.mean_exit_step:.2f} of {result['num_steps']}",
        *(f"×{speed[name]:.2f}" for name in ("steps", "flops", "wall_clock")),
    ]
