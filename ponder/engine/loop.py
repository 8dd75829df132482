"""The one loop: it advances rows step by step, asks the policy, and lets finished rows leave at once.

Inference, replay and streaming are the same loop over different sources. A `Source` holds the rows that are still
running and answers for the step they stand at: `sources.ModelSource` computes (and only what is asked for),
`replay.RecordedSource` looks up what a full-depth run recorded. `run` takes one batch from its first step to its last;
`ponder.inference.streaming` calls the same `ask` with rows at different depths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder._utils.trees import Tree, check_rows, take_rows
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.tasks import Task
from ponder.parts.tasks.base import positions_of
from ponder.policies.base import ExitPolicy, PolicyBatch, StepView

__all__ = ["Exits", "Readings", "Running", "Source", "ask", "run"]


@dataclass(frozen=True)
class Exits:
    """The outputs with which rows left the loop, and the steps at which they did, in the order of the batch.

    Args:
        outputs: The head's outputs at each row's exit, `(batch, …)`.
        exit_step: The step at which each row left, `(batch,)` long, 1-based.

    Example:
        >>> exits = trajectory.replay(policies.Confidence(0.9))
        >>> exits.exit_step[:4], exits.outputs.shape
        (tensor([1, 2, 3, 1]), torch.Size([300, 3]))
    """

    outputs: Tensor
    exit_step: Tensor


class Readings(Protocol):
    """What can be asked of rows at the step they stand at."""

    mask: Tensor | None
    policy_context: Mapping[str, Tensor]

    def features(self) -> Tensor:
        """Return the features of the running rows, `(rows, …)`."""

    def output(self) -> Tensor:
        """Return the outputs of the running rows, `(rows, …)`."""

    def hazard_logit(self) -> Tensor:
        """Return the hazard logits of the running rows, `(rows,)`, at least float32."""


class Source(Readings, Protocol):
    """The rows still running. Row numbers are given on the host."""

    def advance(self, step: int) -> None:
        """Bring all running rows to `step`."""

    def output_of(self, index: Tensor | None) -> Tensor:
        """Return the outputs of the rows `index` among the running (None: all), computed for no others."""

    def keep(self, index: Tensor) -> None:
        """Go on with the rows `index` among the running."""


@dataclass(frozen=True)
class Running:
    """What is known of the rows still running, besides their hidden states.

    Args:
        index: The step that each row has finished, `(rows,)` long; 0 before the first.
        state: What the policy remembers, batch first.
        log_survival: log P(not stopped so far), `(rows,)`.
    """

    index: Tensor
    state: Tree
    log_survival: Tensor

    @classmethod
    def start(cls, policy: ExitPolicy, batch: PolicyBatch) -> Running:
        """What is known of rows before their first step."""
        nothing = torch.zeros_like(batch.row_ids)
        return cls(nothing, policy.init(batch), nothing.float())

    def take(self, index: Tensor) -> Running:
        """What is known of the rows `index` alone."""
        return Running(self.index[index], take_rows(self.state, index), self.log_survival[index])


def run(source: Source, policy: ExitPolicy, batch: PolicyBatch) -> Exits:
    """Run all rows of a batch to their exits.

    Args:
        source: The rows. An empty batch must not come here.
        policy: Who decides; it has been checked against the model.
        batch: Who the rows are, and how many steps there are.

    Returns:
        Outputs and exit steps, in the order of the batch.
    """
    device, num_steps, task = batch.row_ids.device, batch.num_steps, batch.task
    size = batch.row_ids.shape[0]  # not len, which fixes the number of rows of an exported graph
    rows, running = torch.arange(size), Running.start(policy, batch)
    left: list[tuple[Tensor, Tensor, int]] = []
    together = policy.exit_of_all(num_steps)  # such a run is one graph for torch.compile: nothing depends on the rows
    for step in range(1, num_steps + 1):
        source.advance(step)
        if step == (together or num_steps):
            break
        if together is not None:
            continue
        mask, running = ask(source, policy, running, num_steps, task)
        if isinstance(mask, bool):
            if mask:
                break
            continue
        leaving, staying = mask.nonzero().flatten(), (~mask).nonzero().flatten()
        left.append((rows[leaving], source.output_of(leaving), step))
        rows, running = rows[staying], running.take(staying.to(device))
        source.keep(staying)
    left.append((rows, source.output_of(None), step))
    return _in_order(left, device)


def ask(
    source: Readings, policy: ExitPolicy, running: Running, num_steps: int, task: Task
) -> tuple[Tensor | bool, Running]:
    """Ask the policy about rows that have just finished a step before their last.

    Args:
        source: The rows.
        policy: Who decides.
        running: The rows before the step.
        num_steps: N.
        task: What the outputs mean.

    Returns:
        The exit mask, `(rows,)` bool on the host (the one synchronisation of a step), or one bool where all rows leave
        or none; and the rows after the step.
    """
    index, needs, log_survival = running.index + 1, policy.needs, running.log_survival
    readings: dict[str, Tensor] = {}
    if "hazard" in needs:
        logit = source.hazard_logit()
        readings["hazard"], readings["survival"] = logit.sigmoid(), log_survival.exp()
        log_survival = log_survival.to(logit.dtype) + F.logsigmoid(-logit)
        readings["cdf"] = -torch.expm1(log_survival)
    if "output" in needs:
        outputs = source.output().clone()  # a policy that changes it in place changes no answer
        readings["output"] = task.without_padding(outputs, source.mask) if task.per_position else outputs
    if "features" in needs:
        readings["features"] = source.features()
    mask = None if source.mask is None else positions_of(source.mask, task, readings.get("features"))
    context = source.policy_context if "context" in needs else None
    answer = policy.decide(StepView(index.clone(), num_steps, readings, task, mask, context), running.state)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise _no_pair(policy, answer)
    leaves, state = answer
    if state is not None:
        check_rows("policy state", state, index.shape[0])
    if not isinstance(leaves, bool):
        if not isinstance(leaves, Tensor) or leaves.dtype != torch.bool or leaves.shape != index.shape:
            raise _no_mask(policy, leaves, len(index))
        leaves = leaves.cpu()
        if not leaves.any() or leaves.all():
            leaves = bool(leaves[0])
    return leaves, Running(index, state, log_survival)


def _no_pair(policy: ExitPolicy, answer: object) -> ArgumentTypeError:
    return ArgumentTypeError(
        f"{type(policy).__name__}.decide",
        expected="a pair: the exit mask, and the new state",
        got=type(answer).__name__,
        remedy="Write: return mask, state.",
    )


def _no_mask(policy: ExitPolicy, mask: object, rows: int) -> ArgumentError:
    got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    return ArgumentError(
        f"exit mask of {policy!r}",
        expected=f"bool, shape ({rows},): one answer for each running row",
        got=got,
        remedy="Compare per row, and reduce over every dimension but the first.",
    )


def _in_order(left: list[tuple[Tensor, Tensor, int]], device: torch.device) -> Exits:
    """Put what left at different steps back into the order of the batch."""
    rows, outputs, steps = zip(*left, strict=True)
    if len(left) == 1:
        return Exits(outputs[0], torch.full(rows[0].shape, steps[0], device=device))
    order = torch.argsort(torch.cat(rows))
    exit_step = torch.cat([torch.full_like(*of_step) for of_step in zip(rows, steps, strict=True)])[order]
    return Exits(torch.cat(outputs)[order.to(device)], exit_step.to(device))
