"""Section 2: how much of the speed-up in steps arrives in wall-clock, where exits are forced.

Speed-up in steps is N ÷ mean exit step; speed-up in wall-clock is the plain model's time at full
depth ÷ the wrapped model's time to the exits, on the same rows in batches of the same size. The
stem and the answer are not saved, and a batch that has shrunk runs less efficiently than a full
one: both losses show here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.subjects import Options, Subject, albert_base, figure, interleaved, ratio
from ponder._utils.trees import Tree
from ponder.calibration.cost import WallClock
from ponder.policies import ExitPolicy, StepView

__all__ = ["SECTION", "measure", "mixes", "recorded", "spread"]

SECTION = "exiting"
GOALS = {1: 0.95, 32: 0.98}
BATCHES = (1, 8, 32, 128)
LENGTH = 32
ROWS = 32
RESULTS = Path(__file__).parents[1] / "results" / "glue"
RECORDED = "rte-mpnet-palbert-*.json"  # of the results with N = 12, ALBERT-base's depth


def measure(options: Options) -> list[dict[str, Any]]:
    """Return the section's figures."""
    subject = albert_base(options)
    found = []
    for batch in BATCHES[:2] if options.quick else BATCHES:
        rows = batch if options.quick else max(batch, ROWS)
        tables = {
            name: spread(weights, rows)
            for name, weights in mixes(subject.wrapped.ponder.num_steps).items()
        }
        calls = _calls(subject, tables, rows, batch, 8 if options.quick else LENGTH)
        seconds = interleaved(calls, rounds=1 if options.quick else options.pairs)
        for name, table in tables.items():
            steps = subject.wrapped.ponder.num_steps * len(table) / sum(table)
            clock = ratio(seconds, "plain", name)
            share = WallClock(*(value / steps for value in (clock.median, clock.low, clock.high)))
            more = {"steps": steps, "wall_clock": clock.median}
            case = f"{subject.name}, {name}, batch {batch}"
            measured = figure(
                SECTION,
                case,
                "speed-up in wall-clock ÷ in steps",
                share,
                at_least=GOALS.get(batch),
                **more,
            )
            found.append(measured)
    return found


def mixes(num_steps: int) -> dict[str, list[float]]:
    """Return weights of the steps by name: uniform, halving, doubling, and those of a run on GLUE."""
    return {
        "uniform": [1.0] * num_steps,
        "early-heavy": [0.5**step for step in range(num_steps)],
        "late-heavy": [0.5 ** (num_steps - step) for step in range(num_steps)],
        "recorded": recorded(RECORDED, num_steps),
    }


def recorded(pattern: str, num_steps: int) -> list[float]:
    """Return the exit histogram of a committed result on GLUE, as weights of `num_steps` steps.

    Args:
        pattern: Name of the file in `benchmarks/results/glue`, with wildcards.
        num_steps: N of the model that the weights are for; it must be that of the result.
    """
    result = json.loads(sorted(RESULTS.glob(pattern))[0].read_text(encoding="utf-8"))
    histogram: list[float] = next(iter(result["splits"].values()))["exit_histogram"]
    assert len(histogram) == num_steps, f"{pattern} has {len(histogram)} steps"
    return histogram


def spread(weights: Sequence[float], rows: int, seed: int = 0) -> tuple[int, ...]:
    """Return exit steps of `rows` rows in random order, each step in proportion to its weight.

    Example:
        >>> sorted(spread([2.0, 1.0, 1.0], 9))
        [1, 1, 1, 1, 1, 2, 2, 3, 3]
    """
    shares = [rows * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda step: counts[step] - shares[step])
    for step in by_remainder[: rows - sum(counts)]:
        counts[step] += 1
    steps = [step for step, count in enumerate(counts, start=1) for _ in range(count)]
    random.Random(seed).shuffle(steps)
    return tuple(steps)


@dataclass(frozen=True)
class Forced(ExitPolicy):
    """Row i exits at step `table[i mod length of the table]`, 1-based."""

    table: tuple[int, ...]

    def init(self, first: StepView) -> Tree:
        """Look the exits up."""
        return torch.tensor(self.table)[first.row_ids % len(self.table)]

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        """Let rows go at their step."""
        return step.index >= state, state


def _calls(
    subject: Subject, tables: dict[str, tuple[int, ...]], rows: int, batch: int, length: int
) -> dict[str, Callable[[], object]]:
    """Return all rows, in batches: the plain model, and the wrapped one with each table of exits."""
    whole = subject.batch(rows, length)
    ids = torch.arange(rows, device=whole["input_ids"].device)
    parts = [
        {name: value[start : start + batch] for name, value in {**whole, "row_ids": ids}.items()}
        for start in range(0, rows, batch)
    ]

    @torch.inference_mode()
    def plain() -> None:
        for part in parts:
            subject.plain(part["input_ids"], attention_mask=part["attention_mask"])

    def to_the_exits(policy: Forced) -> Callable[[], None]:
        @torch.inference_mode()
        def run() -> None:
            for part in parts:
                subject.wrapped(**part, policy=policy)

        return run

    return {"plain": plain, **{name: to_the_exits(Forced(table)) for name, table in tables.items()}}
