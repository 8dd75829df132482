"""Runs that differ in nothing but the seed, which of them are shown, and what is read off their curves."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks.glue.config import RunConfig, recipe_label
from benchmarks.glue.curves import read_curve, score_at
from benchmarks.glue.results import Result
from benchmarks.tasks import names
from ponder.analysis.frontiers import blind_frontier

BLIND = "blind"
"""The best that can be had without a look at the example, in the place of a policy."""

NOT_AVERAGED = ("WNLI",)  # as in the papers: its dev holds sentences of train with the other label
_KNOWN = ("vanilla", "pabee", "deebert", "fastbert", "pondernet", "palbert", "ponder")


@dataclass(frozen=True)
class Group:
    """The runs of one configuration, by seed; `label` is the recipe, with what was changed in it."""

    label: str
    task: str
    runs: tuple[Result, ...]

    @property
    def scores(self) -> list[float]:
        """Scores at the exits, in percent, one a seed."""
        return [100 * run.score("exits") for run in self.runs]

    @property
    def speed_up(self) -> float:
        """Median of the speed-ups in steps."""
        return statistics.median(float(run["speed_up"]["steps"]) for run in self.runs)

    @property
    def own_policy(self) -> str:
        """Name of the policy that the runs were made with."""
        return str(self.runs[0]["policy"]["name"])

    @property
    def is_cut(self) -> bool:
        """Whether it is an encoder cut after a step (`static`), and so a smaller model."""
        return bool(self.runs[0]["recipe"] == "static")

    @property
    def is_distilled(self) -> bool:
        """Whether it is one that the whole encoder has taught."""
        return self.is_cut and bool(self.runs[0]["config"]["recipe_options"].get("taught"))

    @property
    def policies(self) -> list[str]:
        """Policies that have a curve, the recipe's own first."""
        splits = [split for run in self.runs for split in run.reported]
        return list(dict.fromkeys(entry["policy"] for split in splits for entry in split.get("curves") or ()))

    def at(self, speed_up: float, policy: str) -> float | None:
        """A policy's score at a speed-up in steps, in percent, the median over the seeds.

        It is read on straight lines between the thresholds of the curve; None where a curve does not reach so far. For
        a score that is a mean over rows a straight line is no guess: it is what one expects where a coin decides which
        of two policies a row meets. `BLIND` is the best of one step for all rows and of coins between two steps that
        costs no more.
        """
        known = self.by_seed(speed_up, policy)
        return statistics.median(known.values()) if len(known) == len(self.runs) else None

    def by_seed(self, speed_up: float, policy: str) -> dict[int, float]:
        """The same of each seed that has it; full depth at a speed-up of 1, and what an encoder that was cut has."""
        found = {}
        for run in self.runs:
            if self.is_cut:
                score: float | None = run.score("exits")
            elif speed_up == 1.0:
                score = run.score("full_depth")
            else:
                score = _score_at(run, policy, run["num_steps"] / speed_up)
            if score is not None:
                found[run["config"]["seed"]] = 100 * score
        return found


Groups = Mapping[tuple[str, str], Group]
"""The shown group of each (label, task)."""


def choose(results: Iterable[Result]) -> tuple[Groups, list[str]]:
    """One group for each recipe and task; of several configurations the best on the held-out part of train.

    One that was trained on a part of the data, or that selected on dev, is shown where there is no other: its score is
    no sign of merit.

    Returns:
        The groups, and the places where there was something to choose.
    """
    found: dict[tuple[str, str], dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        config = RunConfig.from_dict(result["config"]).to_dict()  # with the fields that were added since
        rest = {key: value for key, value in config.items() if key != "seed"}
        found[label(result), result["task"]][json.dumps(rest, sort_keys=True)].append(result)
    groups, choices = {}, []
    for key, by_config in found.items():
        best = next(iter(by_config)) if len(by_config) == 1 else max(by_config, key=lambda it: _merit(by_config[it]))
        groups[key] = Group(*key, tuple(sorted(by_config[best], key=lambda run: run["config"]["seed"])))
        if len(by_config) > 1:
            table = pd.DataFrame([json.loads(config) for config in by_config]).astype(str)
            told = ", ".join(
                f"{name}={json.loads(best)[name]}" for name in table if table[name].nunique(dropna=False) > 1
            )
            choices.append(f"{key[0]} on {key[1]} ({len(by_config)} configurations; shown: {told})")
    return groups, choices


def _merit(runs: Sequence[Result]) -> tuple[bool, bool, float, int]:
    on_dev, in_part = any(run.selects_on_dev for run in runs), runs[0]["config"].get("max_train") is not None
    return not in_part, not on_dev, statistics.median(run.selection_score for run in runs), len(runs)


def label(result: Result) -> str:
    """The recipe, with the arguments given to it, and the policy where it is not the recipe's."""
    config = RunConfig.from_dict(result["config"])
    named = recipe_label(result["recipe"], config.recipe_options)
    return f"{named} with {config.policy['name']}" if config.policy else named


def policy_text(policy: Mapping[str, Any]) -> str:
    """`to_dict()` of a policy as `name(field=value)`."""
    fields = ", ".join(f"{key}={value}" for key, value in policy.items() if key != "name")
    return f"{policy['name']}({fields})"


def task_order(tasks: Iterable[str]) -> list[str]:
    """The order of the registry, GLUE's first, then others by name."""
    found = set(tasks)
    return [task for task in names() if task in found] + sorted(found - set(names()))


def ordered(labels: Iterable[str]) -> list[str]:
    """Recipes in the order of the paper's table, then the others by name."""
    places = {name: place for place, name in enumerate(_KNOWN)}
    return sorted(set(labels), key=lambda text: (places.get(text.partition(" ")[0], len(places)), text))


def averaged(groups: Groups) -> list[str]:
    """The tasks of the macro average: those that at least half of the recipes have, WNLI left out."""
    names = {name for name, _ in groups}
    tasks = task_order(task for _, task in groups if task not in NOT_AVERAGED)
    return [task for task in tasks if 2 * sum((name, task) in groups for name in names) >= len(names)]


def by_task(groups: Groups) -> Iterator[tuple[str, list[Group]]]:
    """Each task with its groups, both in order."""
    for task in task_order(task for _, task in groups):
        yield task, [groups[name, task] for name in ordered(name for name, _ in groups) if (name, task) in groups]


def _score_at(run: Result, policy: str, mean_exit_step: float) -> float | None:
    if policy == BLIND:
        return blind_frontier(run.per_step).mixed(mean_exit_step)
    curve = read_curve(run, policy)
    return None if curve is None else score_at(curve, mean_exit_step)
