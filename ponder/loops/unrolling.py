"""`unroll`: all steps of all units of a batch, recorded for training and for trajectories.

    every step: h ← S(h), halted units keep theirs;  answers and hazards of the real units are
    noted, unless the step is of the warm-up;  a policy, if there is one, halts some of them

Every unit is computed to the last step here. `ponder.loops.slots.run` is the way at inference,
where rows leave as their positions halt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder._utils.trees import Tree, map_tensors
from ponder.loops.deciding import Decider, Readings, unit_ids
from ponder.loops.slots import Parts, hold, over_positions, read_hazards, real_units, start_past
from ponder.model.source import StepsRecord
from ponder.model.steps import Context
from ponder.objectives import Depth

__all__ = ["UnrolledUnits", "unroll"]


@dataclass(frozen=True, eq=False)
class UnrolledUnits:
    """The record of all steps of the real units, and the rows after the last one.

    Args:
        record: Outputs, hazards and features, `(units, steps, …)`.
        ids: Identity of each unit, `(units,)` long.
        hidden: The last states, `(rows, length, …)`.
        exit_step: The exit steps as of a run, `(rows, length)` long; 0 at padding.
    """

    record: StepsRecord
    ids: Tensor
    hidden: Tree
    exit_step: Tensor


def unroll(
    parts: Parts,
    hidden: Tree,
    depth: Depth,
    decider: Decider | None,
    *,
    mask: Tensor | None,
    row_ids: Tensor,
    context: Context,
    keep_features: bool = False,
) -> UnrolledUnits:
    """Run all steps of all units; those that a policy halts keep their states.

    The steps of the warm-up come first, without a gradient and unrecorded.

    Args:
        parts: The loop.
        hidden: The states before the first step, `(rows, length, …)`.
        depth: The number of steps, and of those of the warm-up.
        decider: The policy by which units halt; None lets all run.
        mask: Which positions are not padding, `(rows, length)` bool.
        row_ids: Identity of each row, `(rows,)` long.
        context: Arguments of the step.
        keep_features: Whether features are recorded.
    """
    together = parts.halted == "together"
    real = real_units(hidden, mask, together=together)
    ids = unit_ids(row_ids, None if together else real.shape[1])[real]
    mask_of_units = mask if together else None
    index = torch.zeros_like(row_ids)
    past = start_past(parts, parts.read(hidden)[real], mask)
    halting = _Halting(decider, real, ids, depth.total)
    readings = _ReadingsOfSteps(keep_features)
    for step in range(1, depth.total + 1):
        is_warm_up = step <= depth.warm_up
        with torch.set_grad_enabled(torch.is_grad_enabled() and not is_warm_up):
            index = index + 1
            if depth.detached and step > 1:
                hidden = map_tensors(Tensor.detach, hidden)
            visible = mask
            if parts.halted == "hidden" and decider is not None:
                visible = halting.visible()
            after = parts.call_step(hidden, visible, index, context)
            hidden = halting.hold(after, hidden)
            features = parts.read(hidden)[real]
            output = parts.head(features)
            hazard = None
            if parts.lambda_head is not None:
                hazard, past = read_hazards(parts, features, past, mask)
        if not is_warm_up:
            readings.add(output, hazard, features)
        halting.decide(step, Readings(output, features, hazard, mask_of_units))
    exit_step = over_positions(parts, halting.exit_step, hidden, mask)
    return UnrolledUnits(readings.stacked(), ids, hidden, exit_step)


class _Halting:
    """The units that still run, and the exit steps of the others; without a policy all run."""

    def __init__(self, decider: Decider | None, real: Tensor, ids: Tensor, last: int) -> None:
        self.running = real
        self.exit_step = torch.where(real, last, 0)
        self._real = real
        self._decider = decider
        self._units = None
        if decider is not None:
            self._units = decider.start(ids)

    def visible(self) -> Tensor:
        """Return the positions that are not hidden if halted ones are, `(rows, length)` bool."""
        # A row without any visible position would be NaN, and so would its gradient.
        return torch.where(self.running.any(1, keepdim=True), self.running, self._real)

    def hold(self, after: Tree, before: Tree) -> Tree:
        """Return the states after a step, of halted units those before it."""
        if self._decider is None:
            return after
        return hold(self.running, after, before)

    def decide(self, step: int, readings: Readings) -> None:
        """Let the policy halt units after a step, outside the graph of gradients."""
        if self._decider is None or self._units is None:
            return
        exits, self._units = self._decider.decide(self._units, readings.detach())
        exiting = torch.zeros_like(self._real).masked_scatter(self._real, exits) & self.running
        self.exit_step = torch.where(exiting, step, self.exit_step)
        self.running = self.running & ~exiting


class _ReadingsOfSteps:
    """What was read of the units at each recorded step, `(units, …)` each."""

    def __init__(self, keep_features: bool) -> None:
        self._keep_features = keep_features
        self._outputs: list[Tensor] = []
        self._hazards: list[Tensor] = []
        self._features: list[Tensor] = []

    def add(self, output: Tensor, hazard: Tensor | None, features: Tensor) -> None:
        """Note a step."""
        self._outputs.append(output)
        if hazard is not None:
            self._hazards.append(hazard)
        if self._keep_features:
            self._features.append(features)

    def stacked(self) -> StepsRecord:
        """Return the readings of all steps, `(units, steps, …)`."""
        outputs = torch.stack(self._outputs, dim=1)
        return StepsRecord(outputs, _stacked(self._hazards), _stacked(self._features))


def _stacked(of_steps: list[Tensor]) -> Tensor | None:
    if not of_steps:
        return None
    return torch.stack(of_steps, dim=1)
