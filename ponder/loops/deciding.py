"""The units of a loop that a policy decides: positions, or whole rows if these halt together.

A policy decides units as it decides rows of a batch: each has an id, a step, a state, and
readings of that step. So every policy decides per position unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ponder._utils.arrays import concatenate_rows, on_host, select_rows
from ponder._utils.trees import map_tensors
from ponder.policies.base import ExitPolicy, PolicyBatch, PolicyState
from ponder.running.depths import ask_at_depths
from ponder.running.readings import RowState, read_step
from ponder.running.source import Source
from ponder.tasks import Task

__all__ = ["Decider", "Readings", "Units", "unit_ids"]

_POSITION_BITS = 20


class Units(NamedTuple):
    """The state of units between two steps, units first.

    Args:
        rows: What the loop carries for each unit.
        state: The state of the policy, of the units that have finished a step, which come first.
        past: The input of the Lambda head at the last step, if it has a history.
    """

    rows: RowState
    state: PolicyState
    past: Tensor | None

    @property
    def size(self) -> int:
        """The number of units."""
        return int(self.rows.step.shape[0])

    def take(self, index: Tensor) -> Units:
        """Return some of the units, which have all finished a step."""
        return select_rows(self, index)

    def join(self, fresh: Units) -> Units:
        """Return these units, and then others before their first step."""
        rows, past = concatenate_rows([(self.rows, self.past), (fresh.rows, fresh.past)])
        return Units(rows, self.state, past)


class Readings:
    """What can be read of units at one step, as `ponder.running.readings.read_step` asks for it.

    Args:
        output: The head's outputs, `(units, …)`; None if no policy reads them, as for the others.
        features: The readout's features, `(units, …)`.
        hazard_logit: The Lambda head's, `(units,)`, in float32 or float64.
        mask: Which positions are real, `(units, length)` bool, of units that are rows; None
            of positions.
        policy_context: Values that the caller gave for the policy, by name, `(units, …)` each.
    """

    def __init__(
        self,
        output: Tensor | None = None,
        features: Tensor | None = None,
        hazard_logit: Tensor | None = None,
        mask: Tensor | None = None,
        policy_context: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._tensors = (output, features, hazard_logit)
        self.mask = mask
        self.policy_context = policy_context

    def output(self) -> Tensor | None:
        """Return the outputs of the units."""
        return self._tensors[0]

    def features(self) -> Tensor | None:
        """Return the features of the units."""
        return self._tensors[1]

    def hazard_logit(self) -> Tensor | None:
        """Return the hazard logits of the units."""
        return self._tensors[2]

    def detach(self) -> Readings:
        """Return the readings outside the graph of gradients."""
        parts = (*self._tensors, self.mask, self.policy_context)
        return Readings(*map_tensors(Tensor.detach, parts))


@dataclass(frozen=True)
class Decider:
    """A policy that decides on units, at most `max_steps` steps each."""

    policy: ExitPolicy
    max_steps: int
    task: Task

    def start(self, ids: Tensor, past: Tensor | None = None) -> Units:
        """Return units before their first step."""
        return Units(RowState.start(ids, self.policy.needs), None, past)

    def decide(self, units: Units, readings: Readings) -> tuple[Tensor, Units]:
        """Ask the policy about units after one more step, but for those at their last, which exit.

        Returns:
            The exit mask, `(units,)` bool, and the units after the step.
        """
        batch = PolicyBatch(units.rows.row_ids, self.max_steps, self.task)
        source = cast(Source, readings)  # of which one step is read, and nothing more
        view, rows = read_step(source, self.policy.needs, units.rows, batch)
        decision = ask_at_depths(self.policy, view, units.state, on_host(view.index))
        exits = torch.zeros_like(view.index, dtype=torch.bool)
        exits |= torch.as_tensor(decision.exits, device=exits.device)
        return exits, Units(rows, decision.state, units.past)


def unit_ids(row_ids: Tensor, length: int | None) -> Tensor:
    """Return ids of positions, `(rows, length)` long, from the row id and the position alone.

    If `length` is None, rows halt together: they are units with their ids, `(rows,)`.
    """
    if length is None:
        return row_ids
    position = torch.arange(length, device=row_ids.device)
    return (row_ids << _POSITION_BITS)[:, None] + position
