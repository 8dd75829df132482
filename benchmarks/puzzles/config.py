"""Sizes and constants of the benchmark, one configuration a puzzle; the larger ones by `--large`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from benchmarks.puzzles.mazes import Mazes
from benchmarks.puzzles.prefix_sums import PrefixSums
from benchmarks.puzzles.puzzle import Puzzle
from benchmarks.puzzles.rules import LEAST_STEPS
from benchmarks.puzzles.sudoku import MiniSudoku, Sudoku
from ponder.errors import ArgumentError

__all__ = ["LARGE", "PUZZLES", "SMALL", "ExperimentConfig", "config_of"]

PUZZLES: dict[str, Puzzle] = {puzzle.name: puzzle for puzzle in (PrefixSums(), Mazes(), MiniSudoku(), Sudoku())}


@dataclass(frozen=True)
class ExperimentConfig:
    """What is trained, and how.

    Args:
        puzzle: Name of the puzzle.
        width: Width of the solver's state.
        num_steps: N, the deepest run of training.
        run_steps: The deepest run that is reported: more steps than trained, so that larger problems can be solved.
        updates: Number of updates of the weights.
        batch_size: Problems of an update, all of one level.
        learning_rate: Adam's, after a short rise and before it falls to 0 over the last part.
        gradient_steps: Most steps through which a gradient flows; what comes before is run without.
        examples: Problems of every level in each of the sets that choose and report.
        rate: Hazard of PonderNet's geometric prior.
        beta: Weight of PonderNet's divergence.
        tau: Weight of ACT's ponder cost.
        bf16: Whether training computes in bfloat16 where autocast lets it.
        latent_updates: How often a step of the transformer works on z before it works on y.
    """

    puzzle: str
    width: int = 32
    num_steps: int = 20
    run_steps: int = 60
    updates: int = 3000
    batch_size: int = 64
    learning_rate: float = 1e-3
    gradient_steps: int = 20
    examples: int = 500
    rate: float = 0.1
    beta: float = 0.01
    tau: float = 1e-3
    bf16: bool = False
    latent_updates: int = 2

    @property
    def task(self) -> Puzzle:
        """The puzzle itself."""
        return PUZZLES[self.puzzle]


SMALL = {
    config.puzzle: config
    for config in (
        ExperimentConfig("prefix-sums"),
        ExperimentConfig(
            "mazes",
            num_steps=24,
            gradient_steps=24,
            run_steps=80,
            updates=12000,
            batch_size=32,
            examples=125,
            bf16=True,
        ),
        ExperimentConfig("sudoku-4x4", width=64, num_steps=10, gradient_steps=4, run_steps=30, latent_updates=1),
        ExperimentConfig(
            "sudoku-9x9",
            width=64,
            num_steps=16,
            gradient_steps=4,
            run_steps=32,
            updates=3000,
            batch_size=32,
            examples=100,
        ),
    )
}
LARGE = {
    name: replace(config, width=2 * config.width, updates=10 * config.updates, examples=1000)
    for name, config in SMALL.items()
}


def config_of(puzzle: str, *, large: bool = False, **changed: Any) -> ExperimentConfig:
    """The configuration of a puzzle, by its name, with fields that are not its own where they are `changed`.

    Raises:
        ArgumentError: There is no such puzzle or field, or the value is of another type, or no number above 0, or runs
            that are reported would be shallower than those of training, or too shallow for a rule to stop them.
    """
    if puzzle not in SMALL:
        raise ArgumentError("puzzle", expected=f"one of {', '.join(SMALL)}", got=repr(puzzle), remedy="Choose one.")
    config = (LARGE if large else SMALL)[puzzle]
    kinds = {
        field.name: type(getattr(config, field.name)) for field in fields(ExperimentConfig) if field.name != "puzzle"
    }
    for name, value in changed.items():
        if name not in kinds:
            expected = f"one of {', '.join(kinds)}"
            raise ArgumentError("setting", expected=expected, got=repr(name), remedy="Name a field of it.")
        if type(value) is not kinds[name] or (kinds[name] is not bool and not 0 < value < math.inf):
            expected = f"{name} as a {kinds[name].__name__}" + ("" if kinds[name] is bool else " above 0")
            remedy = f"Its own value is {getattr(config, name)}."
            raise ArgumentError("setting", expected=expected, got=repr(value), remedy=remedy)
    made = replace(config, **changed)
    least = max(made.num_steps, LEAST_STEPS)
    if made.run_steps < least:
        expected = (
            f"run_steps of {least} or more (num_steps is {made.num_steps}, and rules wait up to {LEAST_STEPS - 1})"
        )
        raise ArgumentError("setting", expected=expected, got=made.run_steps, remedy="Raise it, or lower num_steps.")
    return made
