"""Section 8: the same on an accelerator, where there is one, in less than nine minutes.

First the batch at which a step saturates the device; then, at that batch, how near a stream comes to its maximum, what
the one synchronisation of a step costs (all that decisions one step behind the compute could save), and what a CUDA
graph of a step of fixed slots saves. Then the other sections, as long as there is time.
"""

from __future__ import annotations

import importlib
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.figures import Options, figure, not_measured
from benchmarks.speed.forced import Forced
from benchmarks.speed.streaming import MIXES, Stage, closed, exits, stage, throughput
from benchmarks.speed.timing import interleaved, ratio
from ponder.policies import ExitPolicy, LastStep

__all__ = ["measure", "saturating", "synchronisation"]

SECTION = "device"
SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
WORTH = 0.9  # a batch twice as large is worth it while a row takes less than this share of its time before
BUDGET = 330.0
OTHERS = ("exiting", "predictor", "peers", "training", "overhead")


def measure(options: Options) -> list[dict[str, Any]]:
    """The section's figures; one row that says so where there is no accelerator."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        return [not_measured(SECTION, "accelerator", "this machine has none")]
    start = time.perf_counter()
    options = replace(options, device=device)
    scene = stage(options, SIZES[-1])
    seconds = _step_seconds(scene, options)
    batch = saturating(seconds)
    case = f"ALBERT-base, batch {batch}"
    found = [figure(SECTION, "ALBERT-base", "batch that saturates a step", batch, seconds=seconds)]
    scene = stage(options, batch)
    for mix in MIXES:
        table = exits(mix, scene.model.num_steps, len(scene.data))
        found += throughput(scene, table, f"{mix}, closed arrival", closed, options.pairs)
    found.append(synchronisation(scene, case, options))
    found.append(_graph(scene, case, options))
    for name in OTHERS:
        if time.perf_counter() - start > BUDGET:
            found.append(not_measured(SECTION, name, "out of time; run its section with --device"))
        else:
            found += importlib.import_module(f"benchmarks.speed.{name}").measure(options)
    return [{**told, "section": SECTION} for told in found]


def saturating(seconds: dict[int, float]) -> int:
    """The batch beyond which rows do not get much cheaper.

    Args:
        seconds: Seconds of one step, by its number of rows, each number twice the one before.

    Example:
        >>> saturating({8: 1.0, 16: 1.1, 32: 2.1, 64: 4.2})
        16
    """
    sizes = sorted(seconds)
    for size, double in itertools.pairwise(sizes):
        if seconds[double] / double > WORTH * seconds[size] / size:
            return size
    return sizes[-1]


def synchronisation(scene: Stage, case: str, options: Options) -> dict[str, Any]:
    """Time at full depth with a decision on the host after every step ÷ with none."""
    model, device = scene.model, next(scene.model.parameters()).device
    ids = torch.stack(list(scene.data[: scene.batch])).to(device)
    mask = torch.ones_like(ids)

    def runs(policy: ExitPolicy) -> Callable[[], Tensor]:
        return torch.inference_mode()(lambda: model(ids, policy=policy, attention_mask=mask).outputs)

    calls = {"asked": runs(Forced((model.num_steps,))), "not asked": runs(LastStep())}
    seconds = interleaved(calls, rounds=2 * options.pairs + 1)
    return figure(SECTION, case, "time with a decision a step ÷ with none", ratio(seconds, "asked", "not asked"))


def _step_seconds(scene: Stage, options: Options) -> dict[int, float]:
    calls = {str(size): scene.bare_steps(1, size) for size in SIZES}
    seconds = interleaved(calls, rounds=2 * options.pairs + 1, least=0.01)
    return {size: statistics.median(seconds[str(size)]) for size in SIZES}


def _graph(scene: Stage, case: str, options: Options) -> dict[str, Any]:
    """A step of fixed slots, replayed as a graph."""
    name = "time of a step ÷ as a CUDA graph"
    if options.device.type != "cuda":
        return not_measured(SECTION, case, f"{name}: the device has no CUDA graphs")
    step = scene.bare_steps(1, scene.batch)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        step()  # what is allocated once is allocated outside of the graph
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    seconds = interleaved({"eager": step, "graph": graph.replay}, rounds=2 * options.pairs + 1)
    return figure(SECTION, case, name, ratio(seconds, "eager", "graph"))
