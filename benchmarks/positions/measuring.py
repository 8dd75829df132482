"""Seconds of a loop whose positions halt at steps that are drawn beforehand, beside the same loop at full depth.

What is measured is the engine and the policy, whatever made the positions halt: the policy reads outputs and takes
their confidence, as `Confidence` does, but exits at the drawn steps. Both loops run in turn, and the least processor
time of several turns counts, since the machine may be shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AlbertConfig
from transformers.models.albert.modeling_albert import AlbertLayer

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
        rows: Rows of the batch.
        length: Positions of a row.
        width: Size of a state.
        max_steps: Steps of full depth.
        mean_step: Mean exit step of the positions.
        full: Seconds of full depth.
        halting: Seconds with halting.
        together: Seconds if the positions of a row leave together, at the last exit step of the row.
    """

    step: str
    rows: int
    length: int
    width: int
    max_steps: int
    mean_step: float
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
            "arrived": seconds_saved / steps_saved,
            "steps_times": steps_times,
            "seconds_times": seconds_times,
            "arrived_times": seconds_times / steps_times,
            "seconds_times_of_together": self.full / self.together,
        }


@dataclass(frozen=True)
class _Drawn(ExitPolicy):
    """Exit at a step that was drawn, and look at the outputs all the same."""

    needs = frozenset({"output", "context"})

    def decide(self, step: StepView, state: Any) -> tuple[Tensor, Any]:
        sure = confidence(step.output) > 1.0  # never
        return sure | (step.index >= step.context["exit"]), state


def measure(
    step: str, rows: int, length: int, width: int, max_steps: int, turns: int, seed: int = 0
) -> Iterator[Timing]:
    """Yield the timings of one setting for several mean exit steps."""
    torch.manual_seed(seed)
    heads = max(1, width // 64)
    made = Block(width, heads) if step == "block" else _albert_layer(width, heads)
    head = nn.Linear(width, CLASSES)
    loop = Loop(made, head).eval()
    hidden = torch.randn(rows, length, width)
    for hazard in (0.15, 0.3, 0.6):
        drawn = torch.distributions.Geometric(hazard).sample((rows, length)).long() + 1
        exits = drawn.clamp(max=max_steps)
        last = exits.amax(1, keepdim=True).expand_as(exits)
        seconds = _least(
            {
                "full": partial(loop, hidden, max_steps=max_steps, policy=LastStep()),
                "halting": partial(_run, loop, hidden, max_steps, exits),
                "together": partial(_run, loop, hidden, max_steps, last),
            },
            turns,
        )
        mean_step = float(exits.double().mean())
        yield Timing(step, rows, length, width, max_steps, mean_step, **seconds)


def _run(loop: Loop, hidden: Tensor, max_steps: int, exits: Tensor) -> None:
    context = {"exit": exits}
    out = loop(hidden, max_steps=max_steps, policy=_Drawn(), policy_context=context)
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
