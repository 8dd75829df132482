"""Runs that differ only in the seed, which of them are shown, and scores of their curves.

One rule everywhere: a score is the median over the seeds, a gap the median of the gaps between runs
of the same seed, and a macro average the mean of these over tasks.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.glue.config import recipe_label
from benchmarks.glue.results import Result
from benchmarks.tasks import names

__all__ = [
    "BLIND",
    "BLIND_FAIR",
    "SPEED_UPS",
    "Group",
    "Groups",
    "choose",
    "label",
    "ordered",
    "task_order",
]

BLIND = "blind"
BLIND_FAIR = "blind_fair"
"""One step for all rows, or a random choice between two, instead of a policy.

It is chosen on the reported rows, which gives an upper bound, or on held-out rows, as all others.
"""
SPEED_UPS = (1.0, 1.5, 2.0, 3.0)
_KNOWN = ("vanilla", "static", "pabee", "deebert", "fastbert", "pondernet", "palbert")


@dataclass(frozen=True)
class Group:
    """The runs of one configuration, by seed; `label` is the recipe, with its changed arguments."""

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
    def is_taught(self) -> bool:
        """Whether it is such an encoder, taught by the whole one."""
        return self.is_cut and bool(self.runs[0].config["recipe_options"].get("taught"))

    @property
    def policies(self) -> list[str]:
        """Policies that have a curve, the recipe's own first."""
        splits = [split for run in self.runs for split in run.reported]
        return list(
            dict.fromkeys(
                entry["policy"] for split in splits for entry in split.get("curves") or ()
            )
        )

    def at(self, speed_up: float, policy: str) -> float | None:
        """Return the median over the seeds of `by_seed`; None if one of them does not reach so far."""
        known = self.by_seed(speed_up, policy)
        return statistics.median(known.values()) if len(known) == len(self.runs) else None

    def by_seed(self, speed_up: float, policy: str) -> dict[int, float]:
        """Return a policy's score at a speed-up in steps, in percent, of each seed that reaches it.

        Full depth at a speed-up of 1; of an encoder that was cut, its own score.
        """
        found = {}
        for run in self.runs:
            if self.is_cut:
                score: float | None = run.score("exits")
            elif speed_up == 1.0:
                score = run.score("full_depth")
            else:
                score = score_at(run, policy, run["num_steps"] / speed_up)
            if score is not None:
                found[run.seed] = 100 * score
        return found


Groups = Mapping[tuple[str, str], Group]
"""The shown group of each (label, task)."""


def score_at(run: Result, policy: str, mean_exit_step: float) -> float | None:
    """Return the score of a run at a mean exit step; None if its curve does not reach so far.

    For a score that is a mean over rows a straight line between two thresholds is what one expects
    where a coin decides which of the two a row meets. F1 and correlations are no such means: there
    the nearest threshold counts.
    """
    if policy in (BLIND, BLIND_FAIR):
        held_out = run["splits"].get("held_out", {}).get("per_step")
        chosen = run.per_step if policy == BLIND else held_out
        return None if chosen is None else _blind(chosen, run.per_step, mean_exit_step)
    found = []
    for split in run.reported:
        points = next(
            (e["points"] for e in split.get("curves") or () if e["policy"] == policy), None
        )
        if points is None or not points["score"]:
            return None
        steps = np.array(points["mean_exit_step"])
        scores = np.array(points["score"])
        if not steps.min() <= mean_exit_step <= steps.max():
            return None
        if run.is_mean:
            known, places = np.unique(steps, return_inverse=True)
            means = np.bincount(places, scores) / np.bincount(places)  # of equal costs the mean
            found.append(float(np.interp(mean_exit_step, known, means)))
        else:
            found.append(float(scores[np.lexsort((steps, np.abs(steps - mean_exit_step)))[0]]))
    return statistics.fmean(found)


def _blind(chosen_by: Sequence[float], judged_by: Sequence[float], mean_exit_step: float) -> float:
    """Return the score of the blind choice that is best by other per-step scores."""
    hull: list[int] = []
    for step, score in enumerate(chosen_by, start=1):
        if hull and score <= chosen_by[hull[-1] - 1]:
            continue
        while len(hull) > 1 and _below(chosen_by, hull[-2], hull[-1], step):
            hull.pop()
        hull.append(step)
    return float(np.interp(mean_exit_step, hull, [judged_by[step - 1] for step in hull]))


def _below(scores: Sequence[float], first: int, middle: int, last: int) -> bool:
    """Whether the middle step scores no more than a coin between the other two."""
    rise = scores[last - 1] - scores[first - 1]
    return (scores[middle - 1] - scores[first - 1]) * (last - first) <= rise * (middle - first)


def choose(results: Iterable[Result]) -> Groups:
    """Return one group for each recipe and task, the configuration that is best on held-out rows.

    One that was trained on a part of the data is shown where there is no other: its score is no
    sign of merit.
    """
    found: dict[tuple[str, str], dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        rest = {
            key: value for key, value in result.config.items() if key not in ("seed", "selection")
        }
        found[label(result), result["task"]][json.dumps(rest, sort_keys=True)].append(result)
    groups = {}
    for key, by_config in found.items():
        best: list[Result] = max(by_config.values(), key=_merit)
        groups[key] = Group(*key, tuple(sorted(best, key=lambda run: run.seed)))
    return groups


def _merit(runs: Sequence[Result]) -> tuple[bool, float, int]:
    whole = runs[0].config.get("max_train") is None
    return whole, statistics.median(run.held_out.score("exits") for run in runs), len(runs)


def label(result: Result) -> str:
    """Return the recipe with its arguments, and the policy if it is not the recipe's."""
    policy: Mapping[str, Any] | None = result.config["policy"]
    named = recipe_label(result["recipe"], result.config["recipe_options"])
    return f"{named} with {policy['name']}" if policy else named


def task_order(tasks: Iterable[str]) -> list[str]:
    """Return tasks in the order of the registry, GLUE's first, then others by name."""
    found = set(tasks)
    return [task for task in names() if task in found] + sorted(found - set(names()))


def ordered(labels: Iterable[str]) -> list[str]:
    """Return recipes in the order of the literature, then the others by name."""
    places = {name: place for place, name in enumerate(_KNOWN)}
    return sorted(
        set(labels), key=lambda text: (places.get(text.partition(" ")[0], len(places)), text)
    )
