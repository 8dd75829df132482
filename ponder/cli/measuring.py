"""What exits save against the plain model: steps, FLOPs and seconds, on texts that nothing was learned from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ponder._utils.numerics import exit_shares
from ponder.cli.telling import BATCH
from ponder.cost.breakdown import Cost
from ponder.cost.measuring import measure_each
from ponder.cost.speed import SpeedUp, WallClock, speed_up, wall_clock
from ponder.integrations.transformers import FinetunedClassifier
from ponder.policies import LastStep

__all__ = ["Measured", "batches_of", "measure", "seconds", "spread"]

_TIMED = 512  # texts, at most
Row = TypeVar("Row")


@dataclass(frozen=True)
class Measured:
    """What exits save on some texts.

    Args:
        speed_up: How many times fewer steps, FLOPs and seconds the exits take than the plain model.
        full_depth: Seconds of the plain model by those of the model with exits where no text leaves early.
        costs: The FLOPs of leaving at each step ÷ those of the plain model, means over texts, by what a policy reads:
            ``""`` for nothing, or ``"output"``.
        exit_shares: The share of these texts that leaves at each step, `(steps,)`.
    """

    speed_up: SpeedUp
    full_depth: WallClock
    costs: Mapping[str, list[float]]
    exit_shares: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        clock = self.speed_up.wall_clock
        assert clock is not None
        return {
            "speed_up_in_steps": self.speed_up.steps,
            "speed_up_in_flops": self.speed_up.flops,
            "speed_up_in_seconds": clock.median,
            "speed_up_in_seconds_range": [clock.low, clock.high],
            "full_depth_in_seconds": self.full_depth.median,
            "batch_size": BATCH,
            "threads": torch.get_num_threads(),
        }


def measure(model: FinetunedClassifier, rows: Sequence[Mapping[str, Any]]) -> Measured:
    """Steps and FLOPs of the model's exits on texts, and seconds in batches of similar length, on this machine."""
    batches = batches_of(model, spread(rows, _TIMED))
    with torch.no_grad():
        exit_step = torch.cat([model(**batch).exit_step.cpu() for batch in batches])
    costs = [cost for batch in batches for cost in _costs(model, **batch)]
    plain = sum(cost.plain for cost in costs)
    shares = {
        name: [sum(float(cost.of(needs, step)) for cost in costs) / plain for step in range(1, model.num_steps + 1)]
        for name, needs in (("", frozenset[str]()), ("output", frozenset({"output"})))
    }
    clock = seconds(model, batches, lambda: _run(model, batches))
    full = seconds(model, batches, lambda: _run(model, batches, policy=LastStep()), pairs=1)
    counted = speed_up(exit_step, model.num_steps, costs=costs, needs=model.policy.needs)
    told = SpeedUp(model.num_steps / exit_step.double().mean().item(), counted.flops, clock)
    return Measured(told, full, shares, tuple(exit_shares(exit_step, model.num_steps)))


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """So many of the rows, evenly spread: the first ones of a file that is sorted are not like the others."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]


def batches_of(model: FinetunedClassifier, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
    """Batches of similar length, padded, without labels."""
    ordered = sorted(rows, key=lambda row: -len(row[model.main_input_name]))
    made = [model.collate(ordered[start : start + BATCH]) for start in range(0, len(ordered), BATCH)]
    return [{name: value for name, value in batch.items() if name != "labels"} for batch in made]


def seconds(
    model: FinetunedClassifier, batches: Sequence[dict[str, Tensor]], exits: Callable[[], object], pairs: int = 3
) -> WallClock:
    """Seconds of the plain classifier on batches by those of something else, timed in turn."""
    plain = model.plain.eval()
    takes = inspect.signature(plain.forward).parameters
    kept = [{name: value for name, value in batch.items() if name in takes} for batch in batches]
    return wall_clock(lambda: _run(plain, kept), exits, pairs=pairs)


def _costs(model: FinetunedClassifier, **batch: Any) -> tuple[Cost, ...]:
    return measure_each(model.ponder, batch.pop(model.main_input_name), **batch)


def _run(call: Any, batches: Sequence[dict[str, Tensor]], **more: Any) -> None:
    with torch.inference_mode():
        for batch in batches:
            call(**batch, **more)
