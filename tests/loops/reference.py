"""Halting per position as in the definition: compute all positions, and keep the old states of those that halted.

Rows are run one by one, without padding and without any of the engine: an oracle for `ponder.loops`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder.policies import ExitPolicy, StepView
from ponder.tasks import task_named


@dataclass(frozen=True)
class Reference:
    """Outputs, exit steps and states of one row, `(length, …)` each."""

    outputs: Tensor
    exit_step: Tensor
    hidden: Tensor


@torch.no_grad()
def run_row(
    step: Callable[..., Tensor],
    head: nn.Module,
    lambda_head: Callable[[Tensor], Tensor],
    policy: ExitPolicy,
    hidden: Tensor,
    max_steps: int,
    *,
    row_id: int,
    halted: str,
) -> Reference:
    """Run one row, `(length, width)`; `step` takes states and `attention_mask`, both with a batch of one."""
    length = len(hidden)
    ids = torch.tensor([row_id * 2**20 + position for position in range(length)])
    task = task_named("classification")
    state = None
    running = torch.ones(length, dtype=torch.bool)
    exit_step = torch.full((length,), max_steps)
    outputs = head(hidden)
    log_survival = torch.zeros(length)
    for number in range(1, max_steps + 1):
        visible = running[None] if halted == "hidden" and not bool(running.all()) else None
        after = step(hidden[None], attention_mask=visible)[0]
        hidden = torch.where(running[:, None], after, hidden)
        outputs = torch.where(running[:, None], head(hidden), outputs)
        logit = lambda_head(hidden).reshape(-1)
        readings = {
            "output": head(hidden),
            "features": hidden,
            "hazard": logit.sigmoid(),
            "survival": log_survival.exp(),
        }
        log_survival = log_survival + F.logsigmoid(-logit)
        readings["cdf"] = 1 - log_survival.exp()
        if number == max_steps:
            break
        index = torch.full((length,), number)
        view = StepView(index, ids, max_steps, readings, task)
        if number == 1:
            state = policy.init(view)
        exits, state = policy.decide(view, state)
        exiting = running & torch.as_tensor(exits)
        exit_step[exiting] = number
        running = running & ~exiting
        if not bool(running.any()):
            break
    return Reference(outputs, exit_step, hidden)
