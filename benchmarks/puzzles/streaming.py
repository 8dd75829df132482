"""A stream of mixed difficulty: `StreamEngine` against a fixed depth in full batches, by the clock."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import ponder
from benchmarks.puzzles.canvas import Canvas, on_canvas
from benchmarks.puzzles.config import ExperimentConfig
from benchmarks.puzzles.measuring import problems_of
from ponder.policies import ExitPolicy, FixedStep

__all__ = ["MAX_BATCH", "Timing", "stream", "timed"]

MAX_BATCH = 64
_SEED = 5


@dataclass(frozen=True)
class Timing:
    """One way through all problems.

    Args:
        seconds: Seconds by the clock, the median over repeats.
        cpu_seconds: CPU seconds of the process, the median over repeats: what the clock would show on an idle machine.
        outputs: `(problems, positions, classes)`, in the order of the stream.
        exit_step: `(problems,)` long.
    """

    seconds: float
    cpu_seconds: float
    outputs: Tensor
    exit_step: Tensor


def stream(
    model: ponder.PonderWrapper,
    config: ExperimentConfig,
    policy: ExitPolicy,
    depth: int,
    repeats: int = 3,
    max_batch: int = MAX_BATCH,
) -> dict[str, Any]:
    """Time a shuffled mixture of all levels, and compare the answers; plain JSON.

    Args:
        model: The model, in evaluation mode.
        config: Sizes and constants of its puzzle.
        policy: Lets problems go.
        depth: The fixed depth that it is compared with.
        repeats: How often each of both ways is timed, in turns.
        max_batch: Problems of a step, in batches and in the stream alike.
    """
    canvas = _shuffled(on_canvas(problems_of(config, "test").values()))
    ways: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "fixed": lambda: _in_batches(model, canvas, FixedStep(depth), config.run_steps, max_batch),
        "batches": lambda: _in_batches(model, canvas, policy, config.run_steps, max_batch),
        "stream": lambda: _streamed(model, canvas, policy, config.run_steps, max_batch),
    }
    timed_ways = timed(ways, repeats)
    fixed, batches, streamed = (timed_ways[name] for name in ways)
    same = (streamed.outputs.argmax(-1) == batches.outputs.argmax(-1)).flatten(1).all(1)
    steps_saved = 1 - float(streamed.exit_step.double().mean()) / depth
    return {
        "problems": len(canvas.labels),
        "max_batch": max_batch,
        "depth": depth,
        "policy": policy.to_dict(),
        "mean_steps": float(streamed.exit_step.double().mean()),
        "answers_equal": int(same.sum()),
        "exit_steps_equal": int((streamed.exit_step == batches.exit_step).sum()),
        "steps_saved": steps_saved,
        "time_saved": 1 - streamed.seconds / fixed.seconds,
        "cpu_time_saved": 1 - streamed.cpu_seconds / fixed.cpu_seconds,
        "time_saved_in_batches": 1 - batches.seconds / fixed.seconds,
        "seconds": {name: round(way.seconds, 3) for name, way in timed_ways.items()},
        "cpu_seconds": {name: round(way.cpu_seconds, 3) for name, way in timed_ways.items()},
    }


def timed(ways: dict[str, Callable[[], tuple[Tensor, Tensor]]], repeats: int) -> dict[str, Timing]:
    """Run the ways in turns, so that what else the machine does meets all of them; medians."""
    clock: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    answers = {}
    gc.collect()
    gc.freeze()  # what the process had before is not searched for garbage: that is no part of any way
    try:
        for _ in range(repeats):
            for name, way in ways.items():
                start, start_cpu = time.perf_counter(), time.process_time()
                answers[name] = way()
                clock[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_cpu)
    finally:
        gc.unfreeze()
    return {name: Timing(statistics.median(clock[name]), statistics.median(cpu[name]), *answers[name]) for name in ways}


def _shuffled(canvas: Canvas) -> Canvas:
    order = torch.randperm(len(canvas.labels), generator=torch.Generator().manual_seed(_SEED))
    mask = None if canvas.mask is None else canvas.mask[order]
    return Canvas(canvas.inputs[order], mask, canvas.labels[order], canvas.difficulty[order])


@torch.inference_mode()
def _in_batches(
    model: ponder.PonderWrapper, canvas: Canvas, policy: ExitPolicy, num_steps: int, max_batch: int
) -> tuple[Tensor, Tensor]:
    outputs, steps = [], []
    for start in range(0, len(canvas.labels), max_batch):
        rows = slice(start, start + max_batch)
        out = model.exits(canvas.inputs[rows], canvas.context(rows), policy, num_steps=num_steps)
        outputs.append(out.outputs)
        steps.append(out.exit_step)
    return torch.cat(outputs), torch.cat(steps)


def _streamed(
    model: ponder.PonderWrapper, canvas: Canvas, policy: ExitPolicy, num_steps: int, max_batch: int
) -> tuple[Tensor, Tensor]:
    def examples() -> Iterator[Any]:
        for row in range(len(canvas.labels)):
            inputs = canvas.inputs[row]
            yield inputs if canvas.mask is None else (inputs, {"attention_mask": canvas.mask[row]})

    with ponder.StreamEngine(model, policy, max_batch=max_batch, num_steps=num_steps) as engine:
        answers = [answer for _, answer in engine.run(examples(), ordered=True)]
    return torch.stack([a.output for a in answers]), torch.tensor([a.exit_step for a in answers])
