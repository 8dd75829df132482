"""The one loop: it advances rows step by step, asks the policy, and lets finished rows exit at once.

A `ModelSource` holds the rows that are still running, and computes what is asked for at the step they stand at. `run`
takes one batch from its first step to its last; a stream calls the same `ask` with rows at different depths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder._utils.trees import Tree, take_rows
from ponder.errors import ArgumentError
from ponder.model.unroll import ModelSource
from ponder.policies.base import ExitPolicy, PolicyBatch, StepView
from ponder.tasks import fits_positions

__all__ = ["Exits", "Running", "ask", "run"]


@dataclass(frozen=True, eq=False)
class Exits:
    """The outputs and the exit step of each row, in the order of the batch or the data set.

    Args:
        outputs: The head's outputs at each row's exit, `(rows, …)`.
        exit_step: The step at which each row exits, `(rows,)` long, 1-based.

    Example:
        >>> exits = trajectory.replay(policies.Confidence(0.9))
        >>> exits.exit_step[:4], exits.outputs.shape
        (tensor([1, 2, 3, 1]), torch.Size([300, 3]))
    """

    outputs: Tensor
    exit_step: Tensor

    def __len__(self) -> int:
        return len(self.exit_step)


@dataclass(frozen=True)
class Running:
    """The state of the running rows besides their hidden states."""

    index: Tensor  # the step that each row has finished, `(rows,)` long; 0 before the first
    state: Tree  # of the policy, batch first
    log_survival: Tensor  # log P(not stopped so far), `(rows,)`

    @classmethod
    def start(cls, policy: ExitPolicy, batch: PolicyBatch) -> Running:
        """Return the state of rows before their first step."""
        index = torch.zeros_like(batch.row_ids)
        return cls(index, policy.init(batch), index.float())

    def take(self, index: Tensor) -> Running:
        """Return the state of the rows `index` alone."""
        return Running(self.index[index], take_rows(self.state, index), self.log_survival[index])


def run(source: ModelSource, policy: ExitPolicy, batch: PolicyBatch) -> Exits:
    """Run all rows of a batch to their exits, under a policy that has been checked against the model."""
    device, num_steps = batch.row_ids.device, batch.num_steps
    if not batch.row_ids.shape[0]:  # the last head, on h_0, gives the outputs a shape
        source.step = num_steps
        return Exits(source.output(), torch.zeros_like(batch.row_ids))
    rows, running = torch.arange(batch.row_ids.shape[0]), Running.start(policy, batch)
    order: list[Tensor] = []
    outputs: list[Tensor] = []
    exit_step = torch.empty_like(rows)
    together = policy.exit_of_all(num_steps)  # such a run is one graph for torch.compile: nothing depends on the rows
    for step in range(1, num_steps + 1):
        source.advance(step)
        if step == (together or num_steps):
            break
        if together is not None:
            continue
        mask, running = ask(source, policy, running, batch)
        if isinstance(mask, bool):
            if mask:
                break
            continue
        exiting, remaining = mask.nonzero().flatten(), (~mask).nonzero().flatten()
        exit_step[rows[exiting]] = step
        order.append(rows[exiting])
        outputs.append(source.output_of(exiting))
        rows, running = rows[remaining], running.take(remaining.to(device))
        source.keep(remaining)
    if not order:
        return Exits(source.output_of(None), torch.full(rows.shape, step, device=device))
    exit_step[rows] = step
    place = torch.argsort(torch.cat([*order, rows])).to(device)
    return Exits(torch.cat([*outputs, source.output_of(None)])[place], exit_step.to(device))


def ask(
    source: ModelSource, policy: ExitPolicy, running: Running, batch: PolicyBatch, asked: Tensor | None = None
) -> tuple[Tensor | bool, Running]:
    """Ask the policy about rows that have just finished a step before their last, `asked` where others are at theirs.

    Returns:
        The exit mask, `(rows,)` bool on the host (the one synchronisation of a step), or one bool where all rows exit
        or none; and the state of the rows after the step.
    """
    index, needs, log_survival, task = running.index + 1, policy.needs, running.log_survival, batch.task
    readings: dict[str, Any] = {}
    if "hazard" in needs:
        logit = source.hazard_logit()
        readings["hazard"], readings["survival"] = logit.sigmoid(), log_survival.exp()
        log_survival = log_survival.to(logit.dtype) + F.logsigmoid(-logit)
        readings["cdf"] = -torch.expm1(log_survival)
    if "output" in needs:
        outputs = source.output().clone()  # a policy that writes into it changes no answer
        readings["output"] = outputs if source.mask is None else task.without_padding(outputs, source.mask)
    if "features" in needs:
        readings["features"] = source.features().clone()
    context = source.policy_context if needs & {"context", "group"} else None
    mask, state = source.mask, running.state
    if mask is not None and not task.per_position and not fits_positions(mask, readings.get("features")):
        mask = None
    if asked is not None:
        index, readings, mask, context, state, log_survival = take_rows(
            (index, readings, mask, context, state, log_survival), asked
        )
    exits, state = policy.decide(StepView(index, batch.num_steps, readings, task, mask, context), state)
    running = Running(index, state, log_survival)
    if isinstance(exits, bool):
        return exits, running
    if not isinstance(exits, Tensor) or exits.dtype != torch.bool or exits.shape != index.shape:
        raise ArgumentError(
            f"exit mask of {policy!r}",
            expected=f"bool, shape ({len(index)},): one answer for each running row",
            got=f"{exits.dtype} {tuple(exits.shape)}" if isinstance(exits, Tensor) else type(exits).__name__,
            remedy="Compare per row, and reduce over every dimension but the first.",
        )
    exits = exits.cpu()
    some = bool(exits.any())
    return exits if some and not bool(exits.all()) else some, running
