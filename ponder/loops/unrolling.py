"""`unroll`: all steps of all units of a batch, recorded for training and for trajectories.

    every step: h ← S(h), halted units keep theirs;  answers and hazards of all units are noted,
    unless the step is of the warm-up;  a policy, if there is one, halts some of them

Every unit is computed to the last step here. `ponder.running.loop.run` is the way at inference,
where rows leave as their positions halt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.loops.positions import PositionSource
from ponder.model.source import StepsRecord
from ponder.objectives import Depth
from ponder.policies import ExitPolicy
from ponder.policies.base import PolicyBatch, PolicyState
from ponder.running.loop import ask
from ponder.running.readings import RowState, read_step

__all__ = ["Unrolled", "unroll"]


@dataclass(frozen=True, eq=False)
class Unrolled:
    """The record of all steps of the units.

    Args:
        record: Outputs, hazards and features, `(units, steps, …)`.
        exit_step: The exit steps as of a run, `(units,)` long.
    """

    record: StepsRecord
    exit_step: Tensor


def unroll(
    source: PositionSource,
    batch: PolicyBatch,
    depth: Depth,
    policy: ExitPolicy | None,
    *,
    use_hazard: bool,
    keep_features: bool = False,
) -> Unrolled:
    """Run all steps of all units; those that a policy halts keep their states.

    The steps of the warm-up come first, without a gradient and unrecorded.

    Args:
        source: The units before their first step.
        batch: Their identities, the number of steps and the task.
        depth: The number of steps, and of those of the warm-up.
        policy: The policy by which units halt; None lets all run.
        use_hazard: Whether hazards are recorded.
        keep_features: Whether features are recorded.
    """
    exit_step = torch.full_like(batch.row_ids, depth.total)
    halting = None
    if policy is not None:
        halting = _Halting(source, batch, policy, exit_step)
    outputs: list[Tensor] = []
    hazards: list[Tensor] = []
    features: list[Tensor] = []
    for step in range(1, depth.total + 1):
        is_warm_up = step <= depth.warm_up
        with torch.set_grad_enabled(torch.is_grad_enabled() and not is_warm_up):
            if depth.detached and step > 1:
                source.detach()
            source.advance(step)
            if use_hazard:  # also in the warm-up: the next step may read its features
                hazard = source.hazard_logit()
            if not is_warm_up:
                outputs.append(source.output())
                features.append(source.features())
                if use_hazard:
                    hazards.append(hazard)
        if halting is not None and step < depth.total:
            halting.ask(step)
        if step == depth.warm_up:
            # Autocast would use the weights again that were cast without a gradient.
            torch.clear_autocast_cache()
    if halting is not None:
        exit_step = halting.exit_step
    record = StepsRecord(
        torch.stack(outputs, dim=1),
        torch.stack(hazards, dim=1) if use_hazard else None,
        torch.stack(features, dim=1) if keep_features else None,
    )
    return Unrolled(record, exit_step)


class _Halting:
    """Units that a policy halts after a step, outside the graph of gradients."""

    def __init__(
        self, source: PositionSource, batch: PolicyBatch, policy: ExitPolicy, exit_step: Tensor
    ) -> None:
        self.exit_step = exit_step
        self._source = source
        self._batch = batch
        self._policy = policy
        self._running = torch.ones_like(batch.row_ids, dtype=torch.bool)
        self._rows = RowState.start(batch.row_ids, policy.needs)
        self._state: PolicyState = None

    @torch.no_grad()
    def ask(self, step: int) -> None:
        """Ask the policy about all units, and halt those of the running ones that exit."""
        policy = self._policy
        view, self._rows = read_step(self._source, policy.needs, self._rows, self._batch)
        if step == 1:
            self._state = policy.init(view)
        decision = ask(policy, view, self._state)
        self._state = decision.state
        if decision.exits is False:
            return
        exits = torch.as_tensor(decision.exits, device=self._running.device) & self._running
        self.exit_step = torch.where(exits, step, self.exit_step)
        self._running = self._running & ~exits
        self._source.halt(exits)
