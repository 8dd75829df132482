"""Costs: FLOPs of the parts of a model, the cost of an exit, and speed-ups.

A row that exits at step n costs the stem, steps 1 to n, one answer, and the readings of the policy
at steps 1 to n: features cost a readout, an output a readout and a head, a hazard a readout and a
Lambda head. At the last step no policy decides. Speed-ups in steps, in FLOPs and in seconds are
three quantities, and each is named as such.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.hooks import RemovableHandle

from ponder._utils.checks import check_int
from ponder._utils.modes import HasModes, evaluating
from ponder.calibration.records import Floats
from ponder.running.readings import views
from ponder.running.source import SteppedModel

__all__ = ["Breakdown", "SpeedUp", "WallClock", "measure", "seconds", "speed_up", "wall_clock"]


@dataclass(frozen=True)
class Breakdown:
    """FLOPs per example of the parts of a model.

    If you build it yourself, costs may be in another unit, seconds for example. The argument
    `needs` of the methods is that of the policy: `policy.needs`.

    Args:
        stem: Cost of the stem.
        steps: Cost of each step, `(steps,)`.
        readouts: Cost of the readout at each step, `(steps,)`.
        heads: Cost of the head at each step, `(steps,)`.
        lambda_head: Cost of the Lambda head at one step; 0 without one.
        first_readout: Cost of the readout of h_0 if the Lambda head reads earlier steps, else 0.

    Example:
        >>> cost = ponder.calibration.cost.Breakdown(0, (100, 100, 100), (0, 0, 0), (10, 10, 10))
        >>> cost.plain, cost.exits({"output"}).tolist()  # with a policy that reads every answer
        (310.0, [110.0, 220.0, 330.0])
        >>> round(cost.break_even({"output"}), 2)
        2.82
    """

    stem: float
    steps: tuple[float, ...]
    readouts: tuple[float, ...]
    heads: tuple[float, ...]
    lambda_head: float = 0.0
    first_readout: float = 0.0

    @property
    def plain(self) -> float:
        """The cost of the unwrapped encoder: stem, every step, last readout and last head."""
        return float(self.stem + sum(self.steps) + self.readouts[-1] + self.heads[-1])

    def exits(self, needs: Iterable[str]) -> Floats:
        """Return the cost of exiting at each step, `(steps,)`."""
        needs = frozenset(needs)
        steps = np.array(self.steps, dtype=np.float64)
        readouts = np.array(self.readouts, dtype=np.float64)
        heads = np.array(self.heads, dtype=np.float64)
        before = self.stem
        readings = np.zeros(len(steps))  # of the policy at each step
        answer = np.zeros(len(steps))  # what remains to be computed for the answer at an exit
        if needs & {"output", "features", "hazard"}:
            readings += readouts
        else:
            answer += readouts
        if "output" in needs:
            readings += heads
        else:
            answer += heads
        if "hazard" in needs:
            readings += self.lambda_head
            before += self.first_readout
        # At the last step no policy decides, and the answer is computed.
        readings[-1] = 0.0
        answer[-1] = readouts[-1] + heads[-1]
        return before + np.cumsum(steps + readings) + answer

    def cumulative(self, needs: Iterable[str]) -> Floats:
        """Return the cost of exiting at each step, relative to the unwrapped encoder, `(steps,)`.

        Pass it to a sweep: ``costs=cost.cumulative, full_cost=1.0``.
        """
        return self.exits(needs) / self.plain

    def break_even(self, needs: Iterable[str]) -> float:
        """Return the mean exit step below which exits cost less than the plain encoder.

        Between steps, costs are interpolated linearly.
        """
        return float(np.interp(self.plain, self.exits(needs), np.arange(1, len(self.steps) + 1)))


class MeasuredModel(SteppedModel, HasModes, Protocol):
    """The parts of a `PonderWrapper` whose FLOPs are counted."""

    head: nn.Module
    lambda_head: nn.Module | None


def measure(model: MeasuredModel, inputs: object, **context: object) -> Breakdown:
    """Return the FLOPs per example of every part of a model on a batch, in evaluation mode.

    The model runs to full depth four times, while nothing, features, outputs and hazards are read
    at each step; the costs of the parts are the differences. A FLOP is one multiplication or one
    addition; matrix products, convolutions, attention and recurrent layers are counted. Padding is
    computed and counted: pass one example, or examples of one length.

    Args:
        model: A `PonderWrapper`.
        inputs: Inputs of a call of the model, `(batch, …)`.
        context: Context of the call.

    Example:
        >>> model = ponder.PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3))
        >>> cost = ponder.calibration.cost.measure(model, torch.randn(5, 8))
        >>> cost.steps, cost.heads[0]
        ((128.0, 128.0, 128.0, 128.0), 48.0)
    """
    halts = model.lambda_head is not None
    plain = _flops(model, frozenset(), inputs, context)
    features = _flops(model, frozenset({"features"}), inputs, context)
    output = _flops(model, frozenset({"output"}), inputs, context)
    hazard = plain
    if halts:
        hazard = _flops(model, frozenset({"hazard"}), inputs, context)
    # Differences along a run are of steps, and differences of runs are of readings. The last entry
    # of a run has the last readout and head in it.
    readouts = np.diff(features.totals - plain.totals)[:-1]
    heads = np.diff(output.totals - features.totals)[:-1]
    steps = np.diff(plain.totals)
    lambda_head = 0.0
    last_readout = 0.0  # with a single step it counts as a part of the step
    if len(readouts):
        last_readout = readouts[-1]  # the readout is the same function at every step
        if halts:
            lambda_head = float(np.diff(hazard.totals - plain.totals)[0] - readouts[0])
    steps[-1] -= last_readout + plain.last_head
    return Breakdown(
        stem=float(plain.totals[0]),
        steps=tuple(steps.tolist()),
        readouts=(*readouts.tolist(), float(last_readout)),
        heads=(*heads.tolist(), plain.last_head),
        lambda_head=lambda_head,
        first_readout=float(hazard.totals[0] - plain.totals[0]),
    )


@dataclass(frozen=True, eq=False)
class _Flops:
    """FLOPs per row of one run.

    Args:
        totals: FLOPs until the first step, until each decision of a policy, and in all.
        last_head: FLOPs from the first call of the head to the end of the last; of the last head if
            no outputs are read, since no other is called then.
    """

    totals: Floats
    last_head: float


def _flops(
    model: MeasuredModel, needs: frozenset[str], inputs: object, context: Mapping[str, Any]
) -> _Flops:
    """Count the FLOPs of one full-depth run under a policy with these `needs`."""
    with evaluating(model), _counting() as counter:
        source, batch = model.start(inputs, needs, **context)
        totals = [counter.get_total_flops()]
        around_heads = list[int]()

        def note(*_: object) -> None:
            around_heads.append(counter.get_total_flops())

        hooks = list[RemovableHandle]()
        for module in model.head.modules():  # parts too, since a model may call one by itself
            hooks.append(module.register_forward_pre_hook(note))
            hooks.append(module.register_forward_hook(note))
        try:
            for _ in islice(views(source, needs, batch), batch.num_steps - 1):
                totals.append(counter.get_total_flops())
            source.advance(batch.num_steps)
            source.output()
        finally:
            for hook in hooks:
                hook.remove()
        totals.append(counter.get_total_flops())
        rows = len(batch.row_ids)
        return _Flops(np.array(totals) / rows, (around_heads[-1] - around_heads[0]) / rows)


@dataclass(frozen=True)
class WallClock:
    """Seconds of the plain model ÷ seconds with exits, over pairs of runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the median and the range of measured values."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class SpeedUp:
    """Cost of the plain model ÷ cost with exits; `wall_clock` measures the same in seconds.

    Args:
        steps: N ÷ mean exit step. It does not count stem, heads and readouts.
        flops: FLOPs of the plain model ÷ FLOPs until the exits, over all examples; the readings of
            the policy are counted. None if costs were not passed.

    Example:
        >>> print(ponder.calibration.cost.SpeedUp(2.0, 1.9))
        ×2.00 in steps, ×1.90 in FLOPs
    """

    steps: float
    flops: float | None = None

    def __str__(self) -> str:
        steps = f"×{self.steps:.2f} in steps"
        if self.flops is None:
            return steps
        return f"{steps}, ×{self.flops:.2f} in FLOPs"


def speed_up(
    exit_step: Any,
    num_steps: int,
    *,
    costs: Breakdown | Sequence[Breakdown] | None = None,
    needs: Iterable[str] = (),
) -> SpeedUp:
    """Return the speed-up of exits over the plain model.

    Args:
        exit_step: The exit step of each example, `(batch,)`, 1-based.
        num_steps: N.
        costs: The costs, one for all examples or one for each; needed for the speed-up in FLOPs.
        needs: The policy's readings, `policy.needs`, which cost something at every step.
    """
    exit_steps = np.asarray(exit_step)
    in_steps = float(num_steps / exit_steps.mean())
    if costs is None:
        return SpeedUp(in_steps)
    if isinstance(costs, Breakdown):
        costs = [costs] * len(exit_steps)
    needs = frozenset(needs)
    plain = sum(cost.plain for cost in costs)
    until_exits = sum(
        cost.exits(needs)[step - 1] for cost, step in zip(costs, exit_steps, strict=True)
    )
    return SpeedUp(in_steps, float(plain / until_exits))


def wall_clock(
    plain: Callable[[], object], wrapped: Callable[[], object], *, pairs: int = 5, warm_up: int = 1
) -> WallClock:
    """Return the ratio of the seconds of `plain` to those of `wrapped`, the same work with exits.

    Runs are timed in pairs, and every other pair is swapped, so that load from other processes that
    lasts longer than a pair cancels out. The first `warm_up` runs of each are not timed.
    """
    check_int("pairs", pairs)
    for _ in range(warm_up):
        plain()
        wrapped()
    ratios = []
    for pair in range(pairs):
        if pair % 2 == 0:
            seconds_plain = seconds(plain)
            seconds_wrapped = seconds(wrapped)
        else:
            seconds_wrapped = seconds(wrapped)
            seconds_plain = seconds(plain)
        ratios.append(seconds_plain / seconds_wrapped)
    return WallClock.of(ratios)


def seconds(
    call: Callable[[], object], repeats: int = 1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds of one run of `call`, the mean over `repeats`.

    Work that an accelerator still does is waited for.
    """
    _wait()
    start = clock()
    for _ in range(repeats):
        call()
    _wait()
    return (clock() - start) / repeats


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


@contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    """Count the FLOPs of a block, with operators that PyTorch's counter lacks."""
    # The fast path computes a whole layer by one operator, which cannot be counted.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False, custom_mapping=_MISSING) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _attention(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    return int(sdpa_flop_count(query, key, value))


def _recurrent(
    sequence: torch.Size, of_input: torch.Size, of_hidden: torch.Size, *_: object, **__: object
) -> int:
    """Return the FLOPs of a recurrent layer: at each position products with two weights."""
    return 2 * sequence[:-1].numel() * (of_input.numel() + of_hidden.numel())


def _matrix_vector(matrix: torch.Size, *_: object, **__: object) -> int:
    return 2 * matrix.numel()


def _add_matrix_vector(bias: torch.Size, matrix: torch.Size, *_: object, **__: object) -> int:
    return 2 * matrix.numel()


_MISSING: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable: _attention,
    torch.ops.aten.mv: _matrix_vector,
    torch.ops.aten.addmv: _add_matrix_vector,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
}
