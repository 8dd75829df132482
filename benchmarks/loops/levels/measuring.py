"""Measurements of a trained solver at every difficulty: every way to stop, every fixed depth, the oracle.

One rule of each family is chosen on problems that are not reported: the cheapest that is as accurate there as the best
fixed depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

import ponder
from benchmarks.loops.levels.solver import Setting
from benchmarks.loops.problems import Problems
from ponder import policies
from ponder.policies import ExitPolicy, FixedStep

__all__ = ["Score", "measure", "problems_of", "replayed"]

SPLITS = {"validation": 2_000_003, "test": 5_000_011}
"""Seeds of the sets, the same for every training: one chooses the rules, one is reported."""
SLACK = 0.002
"""How much less accurate than the best depth a shallower one may be on validation and still count as its equal."""
_ROWS = 125  # of a chunk: a trajectory holds every step's output
_SURE = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999)
FAMILIES: Mapping[str, Sequence[ExitPolicy]] = {
    "converged": [policies.Converged(patience=patience) for patience in range(1, 9)],
    "confidence": [policies.Confidence(threshold) for threshold in _SURE],
    "converged and confident": [
        policies.Converged(patience=patience) & policies.Confidence(threshold)
        for patience in (1, 2)
        for threshold in _SURE
    ],
}


@dataclass(frozen=True)
class Score:
    """A rule on a set: whether each answer at the exit is right, all positions of it; exit steps; levels; `(rows,)`."""

    right: NDArray[np.bool_]
    steps: NDArray[np.int64]
    levels: NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """Share of problems solved."""
        return float(self.right.mean())

    @property
    def mean_steps(self) -> float:
        """Mean exit step."""
        return float(self.steps.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON: overall, by level, and Spearman's correlation of the levels with their mean steps."""
        by_level = [
            {
                "level": int(level),
                "problems": int(rows.sum()),
                "accuracy": float(self.right[rows].mean()),
                "mean_steps": float(self.steps[rows].mean()),
            }
            for level in np.unique(self.levels)
            for rows in [self.levels == level]
        ]
        means = [each["mean_steps"] for each in by_level]
        varies = len(set(means)) > 1
        correlation = (
            float(spearmanr([each["level"] for each in by_level], means).statistic)
            if varies
            else 0.0
        )
        whole = {"accuracy": self.accuracy, "mean_steps": self.mean_steps}
        return {**whole, "rank_correlation": correlation, "by_level": by_level}


def problems_of(setting: Setting, split: str) -> list[Problems]:
    """Return the problems of a split, as many of every level."""
    return [
        setting.task.draw(level, setting.examples, SPLITS[split]) for level in setting.task.levels
    ]


@torch.no_grad()
def replayed(
    model: ponder.PonderWrapper,
    problems: Sequence[Problems],
    num_steps: int,
    rules: Sequence[ExitPolicy],
) -> tuple[list[Score], NDArray[np.bool_], NDArray[np.int64]]:
    """Run every problem to the last step, in chunks, and replay the rules.

    Returns:
        A score for each rule; whether the answer of every step is right, `(rows, steps)`; levels, `(rows,)`.
    """
    right = []
    levels = []
    done = 0
    steps: list[list[NDArray[np.int64]]] = [[] for _ in rules]
    for whole in problems:
        for start in range(0, len(whole), _ROWS):
            part = whole.rows(start, _ROWS)
            ids = torch.arange(
                done, done + len(part)
            )  # each problem its own: sampled exits follow from them
            run = model.unroll(part.inputs, labels=part.labels, num_steps=num_steps, row_ids=ids)
            right.append(run.correct())
            levels.append(np.full(len(part), whole.level))
            for own, rule in zip(steps, rules, strict=True):
                own.append(run.exit_steps(rule))
            done += len(part)
    table = np.concatenate(right)
    of_level = np.concatenate(levels)
    scores = [_score(table, np.concatenate(own), of_level) for own in steps]
    return scores, table, of_level


def _score(table: NDArray[np.bool_], steps: NDArray[np.int64], levels: NDArray[np.int64]) -> Score:
    return Score(table[np.arange(len(table)), steps - 1], steps, levels)


def measure(model: ponder.PonderWrapper, setting: Setting) -> dict[str, Any]:
    """Return accuracy and steps of a solver's ways to stop, as plain JSON."""
    own = [rule for family in FAMILIES.values() for rule in family]
    on = {
        split: replayed(model, problems_of(setting, split), setting.run_steps, own)
        for split in SPLITS
    }
    solved = on["validation"][1].mean(0)
    depth = int((solved >= solved.max() - SLACK).argmax()) + 1
    chosen = dict[str, int]()
    first = 0
    for name, family in FAMILIES.items():
        chosen[name] = first + _cheapest(
            on["validation"][0][first : first + len(family)], solved[depth - 1]
        )
        first += len(family)
    best = list(chosen)[
        _cheapest([on["validation"][0][place] for place in chosen.values()], solved[depth - 1])
    ]
    ways: dict[str, Any] = {
        name: {"policy": own[place].to_dict()} for name, place in chosen.items()
    }
    ways |= {
        "best fixed depth": {"policy": FixedStep(depth).to_dict()},
        "last step": {},
        "oracle": {},
    }
    for split, (scores, table, levels) in on.items():
        for name, place in chosen.items():
            ways[name][split] = scores[place].to_dict()
        for name, step in (("best fixed depth", depth), ("last step", setting.run_steps)):
            ways[name][split] = _score(table, np.full(len(table), step), levels).to_dict()
        # At the first right answer; a problem that never has one is given up after the first step.
        ways["oracle"][split] = Score(
            np.asarray(table.any(1)), table.argmax(1) + 1, levels
        ).to_dict()
    by_step = {
        split: {"all": np.round(table.mean(0), 6).tolist()} for split, (_, table, _) in on.items()
    }
    return {"best_rule": best, "ways": ways, "by_step": by_step}


def _cheapest(scores: Sequence[Score], wanted: float) -> int:
    """Return the rule with the fewest steps of those that reach an accuracy; the most accurate where none does."""
    able = [place for place, score in enumerate(scores) if score.accuracy >= wanted]
    if able:
        return min(able, key=lambda place: scores[place].mean_steps)
    return max(
        range(len(scores)), key=lambda place: (scores[place].accuracy, -scores[place].mean_steps)
    )
