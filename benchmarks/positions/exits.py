"""Exit steps that trained models take: those of LoopBench, by the threshold of confidence that each chose.

`record` runs the supervised solver of each task on the first test problems. So positions of one row halt as they do in
a puzzle or a text: some at once, some late, and neighbours alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.files import read_json, write_json
from benchmarks.loops.measuring import parts_of, run_positions
from benchmarks.loops.solver import Solver
from benchmarks.loops.tasks import TASKS, Problems
from benchmarks.loops.training import HEADS, LEARNERS
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
    for name, own in TASKS.items():
        path = weights / f"{name}-s{seed}.json"
        if not path.exists():
            continue
        result = read_json(path)
        task = replace(own, **{key: result["setting"][key] for key in ("width", "num_steps")})
        solver = Solver(task).eval()
        trained = torch.load(weights / f"{name}-supervised-s{seed}.pt", weights_only=True)
        solver.load_state_dict(trained["model"])
        heads = dict.fromkeys(HEADS, solver.gate)  # which confidence does not read
        parts = parts_of(dict.fromkeys(LEARNERS, solver), heads)["supervised"]
        chosen = result["ways"]["confidence, position"]["policy"]
        whole = task.draw("test", result["rows"], 0)
        rows = POSITIONS // task.length
        problems = Problems(whole.inputs[:rows], whole.labels[:rows])
        run = run_positions(parts, ExitPolicy.from_dict(chosen), problems, task.num_steps)
        facts = {"max_steps": task.num_steps, "policy": chosen, "seed": seed}
        found[name] = {**facts, "exits": run.steps.tolist()}
    write_json(out, found)


def read(path: Path) -> Iterator[Exits]:
    """Yield the exits of a file that `record` wrote."""
    for name, found in read_json(path).items():
        yield Exits(name, found["max_steps"], torch.tensor(found["exits"]))
