"""Runs that differ in nothing but the seed, and which of them a table shows."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.glue.config import RunConfig, recipe_label
from benchmarks.glue.results import Result
from benchmarks.glue.tasks import names

__all__ = ["Group", "Groups", "choose", "knob_chosen", "label", "of_task", "ordered", "policy_text", "task_order"]

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

    def median(self, value: Callable[[Result], float]) -> float:
        """Of any number of a run."""
        return statistics.median(map(value, self.runs))

    def speed_up(self, name: str) -> float:
        """Median of a speed-up: ``"steps"``, ``"flops"`` or ``"wall_clock"``."""
        return self.median(lambda run: float(run["speed_up"][name]))

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
    names = [name for name in configs[0] if len({json.dumps(config[name], sort_keys=True) for config in configs}) > 1]
    return "shown: " + ", ".join(f"{name}={of_shown[name]}" for name in names)


def label(result: Result) -> str:
    """The recipe, with the arguments given to it, and the policy or its knob where they are not the recipe's."""
    named = recipe_label(result["recipe"], result["config"]["recipe_options"])
    policy = result["config"]["policy"]
    named = f"{named} with {policy['name']}" if policy else named
    return f"{named}, {_how_chosen(result)}" if knob_chosen(result) else named


def knob_chosen(result: Result) -> bool:
    """Whether the policy's knob was to be chosen on the held-out part of train, also where nothing could be chosen."""
    knob = result.data.get("knob", {})
    return bool(knob.get("chosen_on") == "held_out" or "statement" in knob)


def _how_chosen(result: Result) -> str:
    config = RunConfig.from_dict(result["config"])
    if config.knob == "budget":
        return f"knob chosen for ×{config.budget:g}"
    return "knob chosen" if config.knob_keeps == 0.99 else f"knob chosen to keep {config.knob_keeps:.1%}"


def policy_text(policy: Mapping[str, Any]) -> str:
    """`to_dict()` of a policy as `name(field=value)`."""
    fields = ", ".join(f"{key}={value}" for key, value in policy.items() if key != "name")
    return f"{policy['name']}({fields})"


def task_order(tasks: Iterable[str]) -> list[str]:
    """GLUE's order, then others by name."""
    found = set(tasks)
    return [task for task in names() if task in found] + sorted(found - set(names()))


def ordered(labels: Iterable[str]) -> list[str]:
    """Recipes in the order of the paper's table, then the others by name."""

    def place(text: str) -> tuple[int, str]:
        recipe = text.replace(",", " ").split(" ", 1)[0]
        return (_KNOWN.index(recipe) if recipe in _KNOWN else len(_KNOWN), text)

    return sorted(set(labels), key=place)


def of_task(groups: Groups, task: str, labels: Sequence[str]) -> list[Group]:
    """The groups of one task, in the order of `labels`."""
    return [groups[label, task] for label in labels if (label, task) in groups]
