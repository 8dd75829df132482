"""Exit steps that trained models take: those of LoopBench, by the threshold of confidence that each chose.

`record` runs the supervised solver of each task on the first test problems. So positions of one row halt as they do in
a puzzle or a text: some at once, some late, and neighbours alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.files import read_json, write_json
from benchmarks.loops.measuring import parts_of, run_positions
from benchmarks.loops.solver import Solver
from benchmarks.loops.tasks import TASKS, Problems
from benchmarks.loops.training import HEADS
from ponder.policies import ExitPolicy

__all__ = ["Exits", "read", "record"]

POSITIONS = 512
"""About how many positions a batch has: 8 texts of 64, 32 sudokus of 16 cells."""


@dataclass(frozen=True, eq=False)
class Exits:
    """Exit steps of one batch.

    Args:
        task: The task of LoopBench.
        max_steps: Steps of full depth.
        exits: The exit step of each position, `(rows, length)` long.
    """

    task: str
    max_steps: int
    exits: Tensor


def record(weights: Path, out: Path, seed: int) -> None:
    """Write the exits of every task whose weights and result are in a folder of LoopBench."""
    found: dict[str, Any] = {}
    for name, task in TASKS.items():
        result, trained = (
            weights / f"{name}-{end}" for end in (f"s{seed}.json", f"supervised-s{seed}.pt")
        )
        if not result.exists():
            continue
        solver = Solver(task).eval()
        solver.load_state_dict(torch.load(trained, weights_only=True)["model"])
        unused = dict.fromkeys(HEADS, solver.gate)
        parts = parts_of(dict.fromkeys(("supervised", "pondernet", "act"), solver), unused)
        chosen = read_json(result)["ways"]["confidence, position"]["policy"]
        whole = task.draw("test", 512, 0)
        rows = POSITIONS // task.length
        problems = Problems(whole.inputs[:rows], whole.labels[:rows])
        policy = ExitPolicy.from_dict(chosen)
        run = run_positions(parts["supervised"], policy, problems, task.num_steps)
        facts = {"max_steps": task.num_steps, "policy": chosen, "seed": seed}
        found[name] = {**facts, "exits": run.steps.tolist()}
    write_json(out, found)


def read(path: Path) -> Iterator[Exits]:
    """Yield the exits of a file that `record` wrote."""
    for name, found in read_json(path).items():
        yield Exits(name, found["max_steps"], torch.tensor(found["exits"]))
