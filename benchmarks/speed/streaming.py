"""Section 5: how near a stream comes to its theoretical maximum, and its latency beside compaction in fixed batches.

The maximum is rows × mean exit step × (one step of a full batch) ÷ batch, the step bare: no mask, no stem, no heads,
no policy. Latencies under load are simulated with the measured costs of steps, and one of them is measured too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import ponder
from benchmarks.speed.exiting import spread
from benchmarks.speed.figures import Options, figure
from benchmarks.speed.forced import Forced
from benchmarks.speed.simulation import Costs, Row, compaction, poisson, quantile, stream
from benchmarks.speed.subjects import albert_base
from benchmarks.speed.timing import interleaved, ratio
from ponder.cost import WallClock

__all__ = ["MIXES", "Stage", "exits", "measure", "stage"]

SECTION = "streaming"
GOAL = 0.97
LOADS = (0.5, 0.8, 0.95)
SATURATED = 1.25
QUANTILES = (0.5, 0.95, 0.99)
BARE_STEPS = 8
LENGTH = 32
MIXES: dict[str, Callable[[int], float]] = {
    "early-heavy": lambda step: 0.6**step,
    "heavy-tailed": lambda step: 1 / step,
}
"""Weights of the steps by name: geometric, and Zipf's."""


@dataclass(frozen=True)
class Stage:
    """A model and rows to stream through it.

    Args:
        model: The model.
        data: Token ids of each row.
        batch: Slots.
    """

    model: ponder.PonderWrapper
    data: Sequence[Tensor]
    batch: int

    def bare_steps(self, count: int, rows: int) -> Callable[[], None]:
        """What runs `count` bare steps of `rows` rows."""
        inputs = torch.stack([self.data[row % len(self.data)] for row in range(rows)])
        inputs = inputs.to(next(self.model.parameters()).device)
        with torch.inference_mode():
            assert self.model.stem is not None
            hidden, context = self.model.stem(inputs)

        @torch.inference_mode()
        def run() -> None:
            for _ in range(count):
                self.model.steps(1, hidden, **context)

        return run


def stage(options: Options, batch: int | None = None) -> Stage:
    """ALBERT-base's architecture with random weights, and 16 batches of rows of 32 tokens."""
    batch = batch or (16 if options.quick else 64)
    subject = albert_base(options)
    return Stage(subject.wrapped.ponder, list(subject.batch(16 * batch, LENGTH)["input_ids"].cpu()), batch)


def exits(mix: str, num_steps: int, rows: int) -> tuple[int, ...]:
    """Exit steps of a mix out of `MIXES`, in random order."""
    return spread([MIXES[mix](step) for step in range(1, num_steps + 1)], rows)


def measure(options: Options) -> list[dict[str, Any]]:
    """The section's figures."""
    scene = stage(options)
    found: list[dict[str, Any]] = []
    reached: dict[str, float] = {}
    for mix in MIXES:
        table = exits(mix, scene.model.num_steps, len(scene.data))
        for arrival, drive in (("closed", closed), ("open", saturated)):
            figures = throughput(scene, table, f"{mix}, {arrival} arrival", drive, options.pairs)
            found += figures
            reached[mix] = min(figures[0]["value"], 1.0)
    seconds = step_seconds(scene, options)
    costs = Costs(seconds)
    for mix in MIXES:
        table = exits(mix, scene.model.num_steps, len(scene.data))
        in_engine = Costs({rows: each / reached[mix] for rows, each in seconds.items()})
        found += measured_latency(scene, mix, table, in_engine)
        for batch in (scene.batch, 4 * scene.batch):
            for load in LOADS:
                found += simulated_latency(mix, table, batch, load, costs, rows=2_000 if options.quick else 20_000)
    return found


def throughput(
    scene: Stage, table: tuple[int, ...], case: str, drive: Callable[..., None], pairs: int
) -> list[dict[str, Any]]:
    """Throughput ÷ its maximum, and occupancy.

    Args:
        scene: The model and the rows.
        table: Exit steps of the rows.
        case: What it is called.
        drive: Puts all rows through an engine, given the engine, the stage and the seconds of a full step.
        pairs: Interleaved pairs of bare steps and streams.
    """
    bare, policy, occupancy = scene.bare_steps(BARE_STEPS, scene.batch), Forced(table), []
    seconds = interleaved({"bare": bare}, rounds=1, least=0.0)["bare"][0] / BARE_STEPS

    def streamed() -> None:
        with ponder.StreamEngine(scene.model, policy, max_batch=scene.batch) as engine:
            drive(engine, scene, seconds * sum(table) / scene.batch)
        occupancy.append(engine.stats.occupancy)

    timed = interleaved({"bare": bare, "streamed": streamed}, rounds=pairs, least=0.0)
    scale = sum(table) / scene.batch / BARE_STEPS  # bare steps of the stream ÷ bare steps that were timed
    clock = ratio(timed, "bare", "streamed")
    reached = WallClock(clock.median * scale, clock.low * scale, clock.high * scale)
    more = {"rows": len(scene.data), "batch": scene.batch, "mean_exit_step": statistics.fmean(table)}
    return [
        figure(SECTION, case, "throughput ÷ theoretical maximum", reached, at_least=GOAL, **more),
        figure(SECTION, case, "occupancy, filling and draining included", statistics.median(occupancy), **more),
    ]


def closed(engine: ponder.StreamEngine, scene: Stage, seconds: float) -> None:
    """All rows are there from the start; the theoretical `seconds` do not matter."""
    for _ in engine.run(scene.data):
        pass


def saturated(engine: ponder.StreamEngine, scene: Stage, seconds: float) -> None:
    """Rows come by a Poisson process, faster than they can be answered in the theoretical `seconds`."""
    arrive(engine, scene.data, poisson(len(scene.data), (1,), SATURATED * len(scene.data) / seconds))


def arrive(engine: ponder.StreamEngine, data: Sequence[Tensor], rows: Sequence[Row]) -> None:
    """Submit rows when they arrive, and wait for the answers."""
    start, futures = time.perf_counter(), []
    for position, (example, row) in enumerate(zip(data, rows, strict=True)):
        time.sleep(max(start + row.arrival - time.perf_counter(), 0.0))
        futures.append(engine.submit(example, row_id=position))
    for future in futures:
        future.result()


def step_seconds(scene: Stage, options: Options) -> dict[int, float]:
    """Seconds of a bare step by its number of rows: medians."""
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if size <= scene.batch]
    runs = {size: scene.bare_steps(1, size) for size in sizes}
    timed = interleaved({str(size): run for size, run in runs.items()}, rounds=2 * options.pairs + 1)
    return {size: statistics.median(timed[str(size)]) for size in sizes}


def simulated_latency(
    mix: str, table: Sequence[int], batch: int, load: float, costs: Costs, *, rows: int
) -> list[dict[str, Any]]:
    """Latency quantiles of the stream and of compaction at a share `load` of the stream's theoretical maximum."""
    rate = load * batch / (statistics.fmean(table) * costs(batch))
    arrivals = poisson(rows, table, rate)
    first = rows // 10  # not yet in equilibrium
    streamed, batched = stream(arrivals, batch, costs)[first:], compaction(arrivals, batch, costs)[first:]
    case, found = f"{mix}, batch {batch}, load {load:.0%}, simulated", []
    for q in QUANTILES:
        pair = {"stream_seconds": quantile(streamed, q), "compaction_seconds": quantile(batched, q)}
        ratio = pair["stream_seconds"] / pair["compaction_seconds"]
        found.append(figure(SECTION, case, f"latency at {q:.0%}, stream ÷ compaction", ratio, **pair))
    return found


def measured_latency(scene: Stage, mix: str, table: tuple[int, ...], costs: Costs) -> list[dict[str, Any]]:
    """How true the simulation is: the engine's latencies at 80% load ÷ those simulated for the same arrivals.

    Args:
        scene: The model and the rows.
        mix: Name of the mix of exits.
        table: The exit steps of the rows.
        costs: Seconds of a step inside the engine, which give its capacity.
    """
    load = LOADS[1]
    rate = load * scene.batch / (statistics.fmean(table) * costs(scene.batch))
    arrivals = poisson(len(scene.data), table, rate)
    with ponder.StreamEngine(scene.model, Forced(table), max_batch=scene.batch) as engine:
        arrive(engine, scene.data, arrivals)
    measured, case, found = engine.stats.latency, f"{mix}, batch {scene.batch}, load {load:.0%}", []
    simulated = stream(arrivals, scene.batch, costs)
    for q in QUANTILES:
        pair = {"measured_seconds": measured[q], "simulated_seconds": quantile(simulated, q)}
        ratio = pair["measured_seconds"] / pair["simulated_seconds"]
        found.append(figure(SECTION, case, f"latency at {q:.0%}, measured ÷ simulated", ratio, **pair))
    return found
