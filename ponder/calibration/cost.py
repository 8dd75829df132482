"""Costs: FLOPs of parts, the cost of an exit, and speed-ups in steps, FLOPs and seconds.

A row that exits at step n has paid for the stem, for steps 1 to n, for one answer, and for the
policy's readings on its way: features are a readout, an output is a readout and a head, a hazard a
readout and a Lambda head. No policy is asked at the last step. Speed-ups in steps, in FLOPs and in
seconds are three quantities, each named wherever it stands.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ponder._utils.checks import check_int
from ponder._utils.modes import evaluating
from ponder.calibration.records import Floats
from ponder.policies.base import ExitPolicy, PolicyBatch, StepView

__all__ = ["Breakdown", "SpeedUp", "WallClock", "measure", "seconds", "speed_up", "wall_clock"]


@dataclass(frozen=True)
class Breakdown:
    """FLOPs per example of the parts of a model; seconds or other units in one that you build.

    The argument `needs`, below, is `policy.needs`.

    Args:
        stem: Cost of the stem.
        steps: Cost of each step, `(steps,)`.
        readouts: Cost of the readout at each step, `(steps,)`.
        heads: Cost of the head at each step, `(steps,)`.
        lambda_head: Cost of the Lambda head at one step; 0 without one.
        first_readout: Cost of the readout of h_0, where the Lambda head reads the steps before;
            else 0.

    Example:
        >>> cost = ponder.calibration.cost.Breakdown(0, (100, 100, 100), (0, 0, 0), (10, 10, 10))
        >>> cost.plain, cost.exits({"output"}).tolist()  # with a policy that looks at every answer
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
        """The cost of the plain encoder: the stem, all steps, the last readout and last head."""
        return float(self.stem + sum(self.steps) + self.readouts[-1] + self.heads[-1])

    def exits(self, needs: Iterable[str]) -> Floats:
        """Return the cost of exiting at each step, `(steps,)`."""
        needs = frozenset(needs)
        reads = needs & {"output", "features", "hazard"}
        steps, readouts, heads = (
            np.array(each, dtype=np.float64) for each in (self.steps, self.readouts, self.heads)
        )
        asked = (
            readouts * bool(reads)
            + heads * ("output" in needs)
            + self.lambda_head * ("hazard" in needs)
        )
        answer = readouts * (not reads) + heads * ("output" not in needs)
        asked[-1], answer[-1] = 0.0, readouts[-1] + heads[-1]
        return (
            self.stem + self.first_readout * ("hazard" in needs) + np.cumsum(steps + asked) + answer
        )

    def cumulative(self, needs: Iterable[str]) -> Floats:
        """Return the cost of exiting at each step, relative to the unwrapped encoder, `(steps,)`.

        Pass it to a sweep: ``costs=cost.cumulative, full_cost=1.0``.
        """
        return self.exits(needs) / self.plain

    def break_even(self, needs: Iterable[str]) -> float:
        """Return the mean exit step below which exits cost less than the plain encoder."""
        return float(np.interp(self.plain, self.exits(needs), np.arange(1, len(self.steps) + 1)))


class _Probe(ExitPolicy):
    """A policy that keeps every row, and notes the FLOPs so far at every call."""

    def __init__(self, needs: frozenset[str], count: Callable[[], int]) -> None:
        self.needs = needs
        self.count = count
        self.seen = list[int]()

    def init(self, batch: PolicyBatch) -> None:
        self.seen.append(self.count())

    def decide(self, step: StepView, state: Any) -> tuple[bool, Any]:
        self.seen.append(self.count())
        return False, state


def measure(model: Any, inputs: Any, **context: Any) -> Breakdown:
    """Return the FLOPs per example of every part of a model on a batch, in evaluation mode.

    The model runs to the end under policies that read nothing, features, outputs and hazards, and
    the differences are the parts. A FLOP is one multiplication or one addition; matrix products,
    convolutions, attention and recurrent layers are counted. Padding is computed, and so it is
    counted: pass one example, or examples of one length.

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
    (none, last_head), (features, _), (output, _), (hazard, _) = (
        _flops(model, frozenset(needs), inputs, context)
        for needs in ((), ("features",), ("output",), ("hazard",) if halts else ())
    )
    readouts = np.diff(features - none)[:-1]
    if len(readouts):
        last = readouts[-1:]
    else:
        last = np.zeros(1)  # the same function at every step; of one step a part of it
    readouts = np.append(readouts, last)
    heads = np.append(np.diff(output - features)[:-1], last_head)
    steps = np.diff(none)
    steps[-1] -= readouts[-1] + last_head
    asked = np.diff(hazard - none)[:1] - readouts[:1]
    lambda_head = float(asked[0]) if halts and len(steps) > 1 else 0.0
    by_step, by_readout, by_head = (tuple(each.tolist()) for each in (steps, readouts, heads))
    return Breakdown(
        float(none[0]), by_step, by_readout, by_head, lambda_head, float(hazard[0] - none[0])
    )


def _flops(
    model: Any, needs: frozenset[str], inputs: Any, context: dict[str, Any]
) -> tuple[Floats, float]:
    """Return FLOPs per row before step 1, at each call of the policy, at the end, and of heads.

    A policy that reads no outputs has one head called, the last.
    """
    with evaluating(model), _counting() as counter:
        probe = _Probe(needs, counter.get_total_flops)
        heads = list[int]()
        hooks = [  # on parts of the head too, which a model may call by themselves
            register(lambda *_: heads.append(counter.get_total_flops()))
            for module in model.head.modules()
            for register in (module.register_forward_pre_hook, module.register_forward_hook)
        ]
        try:
            rows = len(model(inputs, policy=probe, **context).exit_step)
        finally:
            for hook in hooks:
                hook.remove()
        return np.array([*probe.seen, counter.get_total_flops()]) / rows, (
            heads[-1] - heads[0]
        ) / rows


@dataclass(frozen=True)
class WallClock:
    """Median, lowest and highest ratio of seconds, plain ÷ with exits, over pairs of runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the median and the range of measured values."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class SpeedUp:
    """How many times cheaper exits are than the plain model; `wall_clock` measures seconds.

    Args:
        steps: N ÷ mean exit step. It does not count stem, heads and readouts.
        flops: FLOPs of the plain model ÷ FLOPs to the exits, over all examples, with all that the
            policy reads.

    Example:
        >>> print(ponder.calibration.cost.SpeedUp(2.0, 1.9))
        ×2.00 in steps, ×1.90 in FLOPs
    """

    steps: float
    flops: float | None = None

    def __str__(self) -> str:
        return f"×{self.steps:.2f} in steps" + (
            "" if self.flops is None else f", ×{self.flops:.2f} in FLOPs"
        )


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
        costs: Cost of all examples, or one for each, for the speed-up in FLOPs.
        needs: The policy's readings, `policy.needs`, which cost something at every step.
    """
    steps = np.asarray(exit_step)
    flops = None
    if costs is not None:
        needs = frozenset(needs)
        each = [costs] * len(steps) if isinstance(costs, Breakdown) else costs
        spent = sum(cost.exits(needs)[step - 1] for cost, step in zip(each, steps, strict=True))
        flops = float(sum(cost.plain for cost in each) / spent)
    return SpeedUp(float(num_steps / steps.mean()), flops)


def wall_clock(
    plain: Callable[[], object], wrapped: Callable[[], object], *, pairs: int = 5, warm_up: int = 1
) -> WallClock:
    """Return how many times longer `plain` takes than `wrapped`, the same work with exits.

    Runs are timed in pairs, every other one swapped, so that load from elsewhere that lasts longer
    than a pair cancels out; the first `warm_up` of each are not timed.
    """
    check_int("pairs", pairs)
    for _ in range(warm_up):
        plain(), wrapped()
    ratios = []
    for pair in range(pairs):
        if pair % 2:
            after = seconds(wrapped)
            ratios.append(seconds(plain) / after)
        else:
            ratios.append(seconds(plain) / seconds(wrapped))
    return WallClock.of(ratios)


def seconds(
    call: Callable[[], object], repeats: int = 1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds of one run of `call`, the mean over `repeats`, after synchronisation."""
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
    """Count FLOPs of a block, fused operators that PyTorch's counter does not know included."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(
        False
    )  # a whole layer as one operator cannot be counted
    try:
        with FlopCounterMode(display=False, custom_mapping=_MISSING) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _recurrent(
    sequence: torch.Size, of_input: torch.Size, of_hidden: torch.Size, *_: Any, **__: Any
) -> int:
    """Return the FLOPs of a recurrent layer: two products at every position for all gates."""
    return 2 * sequence[:-1].numel() * (of_input.numel() + of_hidden.numel())


_MISSING: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable: _attention,
    torch.ops.aten.mv: lambda left, right, *_, **__: 2 * left.numel(),
    torch.ops.aten.addmv: lambda _, left, right, *__, **___: 2 * left.numel(),
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
}
