"""Seconds of a loop whose positions halt as those of a trained model did, beside full depth, and beside rows.

What is measured is the engine and the policy: the policy reads outputs and takes their confidence, as `Confidence`
does, but exits at the steps that a solver of LoopBench took (`exits.py`), since this loop's weights are new. If rows
halt, each runs all of its positions to its last exit: the same answers. The loops run in turn, and the least processor
time of several turns counts, since the machine may be shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AlbertConfig
from transformers.models.albert.modeling_albert import AlbertLayer

from benchmarks.positions.exits import Exits
from ponder.loops import Block, Loop
from ponder.policies import ExitPolicy, LastStep, StepView
from ponder.policies.certainty import confidence

__all__ = ["Timing", "measure"]

CLASSES = 9


@dataclass(frozen=True)
class Timing:
    """Processor time of one setting.

    Args:
        step: ``"block"`` or ``"albert"``.
        task: The task of LoopBench whose exits they are.
        rows: Rows of the batch.
        length: Positions of a row.
        width: Size of a state.
        max_steps: Steps of full depth.
        mean_step: Mean exit step of the positions.
        row_step: Mean exit step of the rows, if the positions of a row leave together.
        full: Seconds of full depth.
        halting: Seconds with halting.
        together: Seconds if the positions of a row leave together, at the last exit step of the row.
    """

    step: str
    task: str
    rows: int
    length: int
    width: int
    max_steps: int
    mean_step: float
    row_step: float
    full: float
    halting: float
    together: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, the shares saved, and how much of the position-steps saved arrived in seconds."""
        steps_saved = 1.0 - self.mean_step / self.max_steps
        seconds_saved = 1.0 - self.halting / self.full
        steps_times = self.max_steps / self.mean_step
        seconds_times = self.full / self.halting
        return asdict(self) | {
            "steps_saved": steps_saved,
            "seconds_saved": seconds_saved,
            "arrived": seconds_saved / steps_saved if steps_saved else 0.0,
            "steps_times": steps_times,
            "seconds_times": seconds_times,
            "arrived_times": seconds_times / steps_times,
            "steps_times_over_rows": self.row_step / self.mean_step,
            "seconds_times_over_rows": self.together / self.halting,
        }


@dataclass(frozen=True)
class _Given(ExitPolicy):
    """Exit at a step that is given, and look at the outputs all the same."""

    needs = frozenset({"output", "context"})

    def decide(self, step: StepView, state: Any) -> tuple[Tensor, Any]:
        sure = confidence(step.output) > 1.0  # never
        return sure | (step.index >= step.context["exit"]), state


def measure(step: str, exits: Exits, width: int, turns: int, seed: int = 0) -> Timing:
    """Return the timing of one step, ``"block"`` or ``"albert"``, under the exits of a batch."""
    torch.manual_seed(seed)
    heads = max(1, width // 64)
    made = Block(width, heads) if step == "block" else _albert_layer(width, heads)
    loop = Loop(made, nn.Linear(width, CLASSES)).eval()
    steps = exits.exits
    max_steps = exits.max_steps
    rows, length = steps.shape
    hidden = torch.randn(rows, length, width)
    last = steps.amax(1, keepdim=True).expand_as(steps)
    seconds = _least(
        {
            "full": partial(loop, hidden, max_steps=max_steps, policy=LastStep()),
            "halting": partial(_run, loop, hidden, max_steps, steps),
            "together": partial(_run, loop, hidden, max_steps, last),
        },
        turns,
    )
    mean_step, row_step = (float(each.double().mean()) for each in (steps, last))
    return Timing(
        step,
        exits.task,
        rows,
        length,
        width,
        max_steps,
        mean_step,
        row_step,
        full=seconds["full"],
        halting=seconds["halting"],
        together=seconds["together"],
    )


def _run(loop: Loop, hidden: Tensor, max_steps: int, exits: Tensor) -> None:
    context = {"exit": exits}
    out = loop(hidden, max_steps=max_steps, policy=_Given(), policy_context=context)
    assert torch.equal(out.exit_step, exits)


@torch.no_grad()
def _least(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Return the least processor time of each call, run in turn."""
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(turns):
        for name, call in calls.items():
            start = time.process_time()
            call()
            least[name] = min(least[name], time.process_time() - start)
    return least


def _albert_layer(width: int, heads: int) -> nn.Module:
    config = AlbertConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width)
    config._attn_implementation = "sdpa"
    return AlbertLayer(config)
