"""Runs that differ in nothing but the seed, which of them a table shows, and what is read off their curves."""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.glue.config import RunConfig, recipe_label
from benchmarks.glue.results import Result
from benchmarks.glue.thresholds import read_curve
from benchmarks.tasks import names

BLIND = "blind"
"""The best that can be had without a look at the example, in the place of a policy."""

_KNOWN = ("vanilla", "pabee", "deebert", "fastbert", "pondernet", "palbert", "ponder")


@dataclass(frozen=True)
class Group:
    """The runs of one configuration, one a seed.

    Args:
        label: The recipe, with what was changed in it.
        task: Name of the task.
        runs: By seed.
    """

    label: str
    task: str
    runs: tuple[Result, ...]

    @property
    def scores(self) -> list[float]:
        """Scores at the exits, in percent, one a seed."""
        return [100 * run.score("exits") for run in self.runs]

    @property
    def score(self) -> float:
        """Their median."""
        return statistics.median(self.scores)

    def speed_up(self, name: str) -> float:
        """Median of a speed-up: ``"steps"``, ``"flops"`` or ``"wall_clock"``."""
        return statistics.median(float(run["speed_up"][name]) for run in self.runs)

    def reported(self, field: str) -> list[Any]:
        """What the reported splits of all runs hold under `field`, as far as they hold it."""
        return [split[field] for run in self.runs for split in run.reported if split.get(field)]

    @property
    def own_policy(self) -> str:
        """Name of the policy that the runs were made with."""
        return str(self.example["policy"]["name"])

    @property
    def policies(self) -> list[str]:
        """Policies that have a curve, the recipe's own first."""
        return list(dict.fromkeys(entry["policy"] for curves in self.reported("curves") for entry in curves))

    @property
    def on_dev(self) -> bool:
        """Whether something was selected on dev."""
        return any(run.selects_on_dev for run in self.runs)

    @property
    def example(self) -> Result:
        """The first run, for what all have in common."""
        return self.runs[0]


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
        best = next(iter(by_config.values())) if len(by_config) == 1 else max(by_config.values(), key=_merit)
        groups[key] = Group(*key, tuple(sorted(best, key=lambda run: run["config"]["seed"])))
        if len(by_config) > 1:
            choices.append(f"{key[0]} on {key[1]} ({len(by_config)} configurations; {_what_differs(by_config, best)})")
    return groups, choices


def _merit(runs: Sequence[Result]) -> tuple[bool, bool, float, int]:
    on_dev, in_part = any(run.selects_on_dev for run in runs), runs[0]["config"].get("max_train") is not None
    return not in_part, not on_dev, statistics.median(run.selection_score for run in runs), len(runs)


def _what_differs(by_config: Iterable[str], shown: Sequence[Result]) -> str:
    """The fields in which configurations differ, with the values of the one that is shown."""
    configs = [json.loads(config) for config in by_config]
    of_shown = RunConfig.from_dict(shown[0]["config"]).to_dict()
    varied = [name for name in configs[0] if len({json.dumps(config[name], sort_keys=True) for config in configs}) > 1]
    return "shown: " + ", ".join(f"{name}={of_shown[name]}" for name in varied)


def label(result: Result) -> str:
    """The recipe, with the arguments given to it, and the policy or its threshold where they are not the recipe's."""
    config = RunConfig.from_dict(result["config"])
    named = recipe_label(result["recipe"], config.recipe_options)
    named = f"{named} with {config.policy['name']}" if config.policy else named
    if not threshold_chosen(result):
        return named
    if config.knob == "budget":
        return f"{named}, threshold chosen for ×{config.budget:g}"
    keeps = "" if config.knob_keeps == 0.99 else f" to keep {config.knob_keeps:.1%}"
    return f"{named}, threshold chosen{keeps}"


def threshold_chosen(result: Result) -> bool:
    """Whether the threshold was to be chosen on the held-out part of train, also where nothing could be chosen."""
    chosen = result.data.get("knob", {})
    return bool(chosen.get("chosen_on") == "held_out" or "statement" in chosen)


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

    def place(text: str) -> tuple[int, str]:
        recipe = text.replace(",", " ").split(" ", 1)[0]
        return (_KNOWN.index(recipe) if recipe in _KNOWN else len(_KNOWN), text)

    return sorted(set(labels), key=place)


def labels_of(groups: Groups) -> list[str]:
    """The recipes of groups, in order."""
    return ordered(label for label, _ in groups)


def by_task(groups: Groups) -> Iterator[tuple[str, list[Group]]]:
    """Each task with its groups, both in order."""
    for task in task_order(task for _, task in groups):
        yield task, [groups[label, task] for label in labels_of(groups) if (label, task) in groups]


def each(groups: Groups) -> Iterator[Group]:
    """The groups, by task and recipe in order."""
    return (group for _, shown in by_task(groups) for group in shown)


def held_out_view(group: Group) -> Group | None:
    """The same runs, reporting what was held out; None where nothing was."""
    views = [run.held_out for run in group.runs]
    found = tuple(view for view in views if view is not None)
    return dataclasses.replace(group, runs=found) if found else None


def at_speed_up(group: Group, policy: str, speed_up: float) -> float | None:
    """A policy's score at a speed-up in steps, the median over the seeds; None where a curve does not reach so far.

    It is read on straight lines between the thresholds of the curve. `BLIND` is the best of all mixtures of two steps.
    """
    found = [_of_run(run, policy, run["num_steps"] / speed_up) for run in group.runs]
    known = [100 * score for score in found if score is not None]
    return statistics.median(known) if len(known) == len(found) else None


def _of_run(run: Result, policy: str, at: float) -> float | None:
    if policy == BLIND:
        pairs = itertools.combinations(enumerate(run.per_step, start=1), 2)
        mixed = [interpolate([i, j], [one, two], at) for (i, one), (j, two) in pairs if i <= at <= j]
        return max(mixed, default=None)
    curve = read_curve(run, policy)
    steps = [] if curve is None else [point.mean_exit_step for point in curve.points]
    if curve is None or not min(steps) <= at <= max(steps):
        return None
    return interpolate(steps, [point.score for point in curve.points], at)


def interpolate(costs: Sequence[float], scores: Sequence[float], at: float) -> float:
    """The score at a cost, on straight lines between neighbours; equal costs count as one, with their mean score.

    For a score that is a mean over rows, a straight line is no guess: it is what one expects where a coin decides which
    of the two policies a row meets.
    """
    known = pd.Series(scores, dtype=float).groupby(list(costs)).mean()  # by cost, in order
    return float(np.interp(at, known.index, known))
