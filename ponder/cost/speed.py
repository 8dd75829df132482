"""Speed-ups: in steps, in FLOPs and in wall-clock. They are three quantities, and each is named wherever it stands."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ponder._utils.validation import check_int, check_type
from ponder.cost.breakdown import Cost, checked_plain
from ponder.errors import ArgumentError

__all__ = ["SpeedUp", "WallClock", "seconds", "speed_up", "wall_clock"]


@dataclass(frozen=True)
class WallClock:
    """Ratios of seconds, of the plain model by the wrapped one, over pairs of runs.

    Args:
        median: Median of the ratios.
        low: The lowest ratio.
        high: The highest ratio.

    Example:
        >>> took = WallClock(median=1.7, low=1.6, high=1.8)
        >>> print(SpeedUp(steps=2.0, wall_clock=took))
        ×2.00 in steps, ×1.70 (1.60–1.80) in wall-clock
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The median and the range of measured values.

        Example:
            >>> WallClock.of([1.8, 1.6, 1.7])
            WallClock(median=1.7, low=1.6, high=1.8)
        """
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class SpeedUp:
    """How many times cheaper exiting is than the plain model; None where it was not measured.

    Args:
        steps: N ÷ mean exit step. It leaves out stem, heads and readouts.
        flops: FLOPs of the plain model ÷ FLOPs to the exits, over all examples, with all that the policy reads.
        wall_clock: Seconds of the plain model ÷ seconds to the exits, on one device at one batch size.

    Example:
        >>> print(SpeedUp(steps=2.0, flops=1.9, wall_clock=WallClock(1.7, 1.6, 1.8)))
        ×2.00 in steps, ×1.90 in FLOPs, ×1.70 (1.60–1.80) in wall-clock
    """

    steps: float | None = None
    flops: float | None = None
    wall_clock: WallClock | None = None

    def __str__(self) -> str:
        named = [f"×{self.steps:.2f} in steps"] if self.steps is not None else []
        if self.flops is not None:
            named.append(f"×{self.flops:.2f} in FLOPs")
        if (clock := self.wall_clock) is not None:
            named.append(f"×{clock.median:.2f} ({clock.low:.2f}–{clock.high:.2f}) in wall-clock")
        return ", ".join(named) or "not measured"


def speed_up(
    exit_step: Tensor,
    num_steps: int,
    *,
    costs: Cost | Sequence[Cost] | None = None,
    needs: Iterable[str] | None = None,
    wall_clock: WallClock | None = None,
) -> SpeedUp:
    """The speed-up of exits over the plain model.

    Args:
        exit_step: The step at which each example left, `(batch,)`, 1-based.
        num_steps: N.
        costs: Cost of all examples, or one for each (`measure_each`), for the speed-up in FLOPs; None leaves it out.
        needs: What the policy reads, `policy.needs`, which costs something at every step; asked for with `costs`.
        wall_clock: Ratios of seconds that `wall_clock` measured, to be shown beside the others; None leaves them out.

    Example:
        >>> print(speed_up(torch.tensor([1, 2, 3, 6]), 6))
        ×2.00 in steps
    """
    exit_step = torch.as_tensor(exit_step)
    no_steps = exit_step.dim() != 1 or exit_step.is_floating_point() or exit_step.dtype is torch.bool
    if no_steps or not len(exit_step) or not 1 <= int(exit_step.min()) <= int(exit_step.max()) <= num_steps:
        raise ArgumentError(
            "exit_step",
            expected=f"one step in 1..{num_steps} for each of one or more examples",
            got=exit_step.tolist(),
            remedy="Pass the exit steps of all examples: out.exit_step.",
        )
    if costs is not None and needs is None:
        raise ArgumentError(
            "needs",
            expected="what the policy reads, which is computed at every step",
            got="None",
            remedy="Pass needs=policy.needs.",
        )
    in_flops = None if costs is None else _in_flops(exit_step, num_steps, costs, needs or ())
    return SpeedUp(num_steps / exit_step.double().mean().item(), in_flops, wall_clock)


def _in_flops(exit_step: Tensor, num_steps: int, costs: Cost | Sequence[Cost], needs: Iterable[str]) -> float:
    needs, steps = frozenset(needs), exit_step.tolist()
    each = [costs] * len(steps) if isinstance(costs, Cost) else list(costs)
    for one in each:
        check_type("costs", one, Cost, remedy="Pass what ponder.cost.measure(model, inputs) gave, of the model.")
    if len(each) != len(steps) or any(cost.num_steps != num_steps for cost in each):
        raise ArgumentError(
            "costs",
            expected=f"one Cost of {num_steps} steps, or one for each of {len(steps)} examples",
            got=f"{len(each)}, of {sorted({cost.num_steps for cost in each})} steps",
            remedy="Measure the model and the examples that the exit steps are of.",
        )
    exits = sum(float(cost.of(needs, step)) for cost, step in zip(each, steps, strict=True))
    return sum(map(checked_plain, each)) / exits


def wall_clock(
    plain: Callable[[], object], wrapped: Callable[[], object], *, pairs: int = 5, warm_up: int = 1
) -> WallClock:
    """How many times longer `plain` takes than `wrapped`: each pair is timed in turn, and every other one swapped.

    Accelerators are waited for. Load from elsewhere that lasts longer than a pair cancels out.

    Args:
        plain: The work that is compared with, repeated enough to take some milliseconds.
        wrapped: The same work with exits.
        pairs: Number of pairs, ≥ 1.
        warm_up: Untimed runs of each before, ≥ 0.

    Example:
        >>> took = wall_clock(lambda: model(inputs, policy=policies.LastStep()), lambda: model(inputs), pairs=3)
        >>> took.low <= took.median <= took.high
        True
    """
    check_int("pairs", pairs)
    check_int("warm_up", warm_up, 0)
    for _ in range(warm_up):
        plain(), wrapped()
    ratios = []
    for pair in range(pairs):
        if pair % 2:
            after = seconds(wrapped)
            ratios.append(seconds(plain) / after)
        else:
            before = seconds(plain)
            ratios.append(before / seconds(wrapped))
    return WallClock.of(ratios)


def seconds(call: Callable[[], object], repeats: int = 1, clock: Callable[[], float] | None = None) -> float:
    """Seconds of one run of `call`, the mean over some; accelerators are waited for.

    Args:
        call: What is timed.
        repeats: How often it is run, ≥ 1.
        clock: Gives seconds; `time.perf_counter` where None.
    """
    clock = clock or time.perf_counter
    _wait()
    start = clock()
    for _ in range(repeats):
        call()
    _wait()
    return (clock() - start) / repeats


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
