"""What a trained learner does on the sets that choose and report: every way to stop, every fixed depth, the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

import ponder
from benchmarks.puzzles.canvas import on_canvas
from benchmarks.puzzles.config import ExperimentConfig
from benchmarks.puzzles.learners import ACT, FeedForward, Learner, Looped, PonderNet
from benchmarks.puzzles.puzzle import Problems
from benchmarks.puzzles.rules import FAMILIES, SLACK, Score, cheapest, gate_rules
from ponder import policies
from ponder.calibration import fit_gate
from ponder.parts.tasks import task_named
from ponder.policies import ExitPolicy, Gate

__all__ = ["SPLITS", "fitted_gates", "measure", "oracle", "problems_of", "replayed", "told"]

SPLITS = {"fitting": 1_000_003, "validation": 2_000_003, "test": 5_000_011}
"""Seeds of the sets, the same for every training: one fits the gate, one chooses the rules, one is reported."""
_TASK = task_named("token_classification")
_ROWS = 125  # of a chunk: a trajectory holds every step's output


@dataclass(frozen=True)
class Replays:
    """Full-depth runs of a set, and what rules make of them.

    Args:
        scores: One for each rule.
        by_step: Whether the answer of every step is right, `(problems, steps)` bool.
        levels: Level of each problem, `(problems,)` long.
    """

    scores: list[Score]
    by_step: Tensor
    levels: Tensor


def problems_of(config: ExperimentConfig, split: str, levels: Sequence[int] | None = None) -> dict[int, Problems]:
    """The problems of a split by level, as many of every level."""
    puzzle = config.task
    return {level: puzzle.draw(level, config.examples, SPLITS[split]) for level in levels or puzzle.levels}


@torch.no_grad()
def measure(learner: Learner, config: ExperimentConfig) -> dict[str, Any]:
    """Accuracy and steps of a learner's ways to stop, as plain JSON."""
    learner.eval()
    if isinstance(learner, Looped):
        return _looped(learner, config)
    ways: dict[str, Any] = {}
    test = problems_of(config, "test")
    if isinstance(learner, PonderNet):
        rules = {"sampled": learner.model.policy, "Q-exit 0.5": policies.Quantile(0.5)}
        scores = replayed(learner.model, test, config.run_steps, list(rules.values())).scores
        ways = dict(zip(rules, scores, strict=True))
    elif isinstance(learner, FeedForward):
        ways = {"all layers": replayed(learner.model, test, None, [policies.LastStep()]).scores[0]}
    elif isinstance(learner, ACT):
        ways = {"mixed": Score.cat([_mixed(learner, config, level, chunk) for level, chunk in chunks(test)])}
    return {"ways": {name: {"test": told(score)} for name, score in ways.items()}}


def _looped(learner: Looped, config: ExperimentConfig) -> dict[str, Any]:
    """Rules are chosen on validation, to be as accurate there as the best fixed depth, and told on both sets."""
    families = {**FAMILIES, "fitted gate": gate_rules(fitted_gates(learner.model, config))}
    rules = [policy for family in families.values() for policy in family]
    on = {
        split: replayed(learner.model, problems_of(config, split), config.run_steps, rules)
        for split in ("validation", "test")
    }
    solved = on["validation"].by_step.double().mean(0)
    depth = int((solved >= float(solved.max()) - SLACK).int().argmax()) + 1
    wanted = float(solved[depth - 1])
    chosen, first = {}, 0
    for name, family in families.items():
        chosen[name] = first + cheapest(on["validation"].scores[first : first + len(family)], wanted)
        first += len(family)
    names = list(chosen)
    best = names[cheapest([on["validation"].scores[chosen[name]] for name in names], wanted)]
    ways = {
        name: {"policy": rules[index].to_dict(), **{split: told(of.scores[index]) for split, of in on.items()}}
        for name, index in chosen.items()
    }
    ways["best fixed depth"] = {"policy": policies.FixedStep(depth).to_dict()} | {
        split: told(fixed(of, depth)) for split, of in on.items()
    }
    ways["last step"] = {split: told(fixed(of, config.run_steps)) for split, of in on.items()}
    ways["oracle"] = {split: told(oracle(of.by_step, of.levels)) for split, of in on.items()}
    return {
        "best_rule": best,
        "ways": ways,
        "by_step": {split: _by_step(of) for split, of in on.items()},
    }


def fitted_gates(model: ponder.PonderWrapper, config: ExperimentConfig) -> list[Gate]:
    """Gates of the frozen solver, fitted on problems of the trained levels: one for each event that hindsight tells."""
    canvas = on_canvas(problems_of(config, "fitting", config.task.trained_levels).values())
    context: dict[str, Any] = {**canvas.context(slice(None))}
    trajectory = model.unroll(canvas.inputs, labels=canvas.labels, **context)
    return [fit_gate(trajectory, target, shared=True) for target in ("unsettled", "error")]


def replayed(
    model: ponder.PonderWrapper, problems: Mapping[int, Problems], num_steps: int | None, rules: Sequence[ExitPolicy]
) -> Replays:
    """Run every problem to the last step, in chunks, and replay the rules.

    Args:
        model: The model, in evaluation mode.
        problems: The problems of each level.
        num_steps: How deep; the model's own number where None.
        rules: The rules to replay.
    """
    parts: list[list[Score]] = []
    by_step, levels = [], []
    done = 0
    for level, chunk in chunks(problems):
        row_ids = torch.arange(done, done + len(chunk))  # each problem its own: sampled exits follow from them
        trajectory = model.unroll(chunk.inputs, num_steps=num_steps, row_ids=row_ids)
        done += len(chunk)
        right = _TASK.correct(trajectory.outputs, chunk.labels)
        of_level = torch.full((len(chunk),), level)
        parts.append([_score(right, trajectory.replay(rule).exit_step, of_level) for rule in rules])
        by_step.append(right)
        levels.append(of_level)
    scores = [Score.cat(of_rule) for of_rule in zip(*parts, strict=True)]
    return Replays(scores, torch.cat(by_step), torch.cat(levels))


def chunks(problems: Mapping[int, Problems]) -> Iterator[tuple[int, Problems]]:
    """Levels with some of their problems, small enough to keep every step's output."""
    for level, of_level in problems.items():
        for start in range(0, len(of_level), _ROWS):
            rows = slice(start, start + _ROWS)
            yield level, Problems(of_level.inputs[rows], of_level.labels[rows], of_level.difficulty[rows])


def fixed(replays: Replays, step: int) -> Score:
    """Every problem stopped at one step."""
    right = replays.by_step[:, step - 1]
    return Score(right, torch.full_like(replays.levels, step), replays.levels)


def oracle(by_step: Tensor, levels: Tensor) -> Score:
    """Stop at the first right answer; a problem that never has one is given up after the first step.

    Example:
        >>> oracle(torch.tensor([[False, True, True], [False, False, False]]), torch.tensor([1, 1])).steps
        tensor([2, 1])
    """
    return Score(by_step.any(1), by_step.int().argmax(1) + 1, levels)


def told(score: Score) -> dict[str, Any]:
    """A score as plain JSON: overall, by level, and how steps go with difficulty.

    The rank correlation is Spearman's, of the levels with their mean exit steps; 0 where these are all the same.
    """
    levels = score.levels.unique().tolist()
    by_level = [
        {
            "level": level,
            "problems": int(rows.sum()),
            "accuracy": float(score.right[rows].double().mean()),
            "mean_steps": float(score.steps[rows].double().mean()),
        }
        for level in levels
        for rows in [score.levels == level]
    ]
    return {
        "accuracy": score.accuracy,
        "mean_steps": score.mean_steps,
        "rank_correlation": _rank_correlation(levels, [entry["mean_steps"] for entry in by_level]),
        "by_level": by_level,
    }


def _score(right: Tensor, exit_step: Tensor, levels: Tensor) -> Score:
    return Score(right.gather(1, exit_step.unsqueeze(1) - 1).squeeze(1), exit_step, levels)


def _mixed(learner: ACT, config: ExperimentConfig, level: int, problems: Problems) -> Score:
    outputs, mixed = learner.mixed(problems.inputs, config.run_steps)
    right = _TASK.correct(outputs.unsqueeze(1), problems.labels).squeeze(1)
    return Score(right, mixed.exit_step, torch.full_like(mixed.exit_step, level))


def _rank_correlation(levels: Sequence[int], mean_steps: Sequence[float]) -> float:
    if len(set(mean_steps)) < 2:
        return 0.0
    return float(spearmanr(levels, mean_steps).statistic)


def _by_step(replays: Replays) -> dict[str, list[float]]:
    """The accuracy of every fixed depth: of all levels together, and of each."""
    told = {"all": replays.by_step.double().mean(0).tolist()}
    for level in replays.levels.unique().tolist():
        told[str(level)] = replays.by_step[replays.levels == level].double().mean(0).tolist()
    return {name: [round(value, 6) for value in values] for name, values in told.items()}
