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

from ponder._utils.trees import Tree, map_tensors, take_rows
from ponder.errors import ArgumentError
from ponder.model.padding import join_rows
from ponder.policies.base import ExitPolicy, PolicyBatch
from ponder.running.readings import RowState, read_step
from ponder.running.source import Source
from ponder.tasks import Task

__all__ = ["Decider", "Readings", "Units", "unit_ids"]

_POSITION_BITS = 20


class Units(NamedTuple):
    """The state of units between two steps: a tree, units first."""

    step: Tensor  # that each has finished, `(units,)` long
    state: Tree  # of the policy
    log_survival: Tensor | None  # log P(not stopped so far), if the policy reads hazards
    past: Tensor | None  # the input of the Lambda head at the last step, if it has a history

    @property
    def size(self) -> int:
        """The number of units."""
        return int(self.step.shape[0])

    def take(self, index: Tensor) -> Units:
        """Return some of the units."""
        taken: Units = take_rows(self, index)
        return taken

    @staticmethod
    def join(first: Units, second: Units) -> Units:
        """Return both, in order; a state without a value yet becomes zeros if the other has one."""
        joined: Units = join_rows([first, second], sizes=[first.size, second.size])
        return joined


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

    def take(self, index: Tensor) -> Readings:
        """Return the readings of some of the units."""
        return Readings(*take_rows((*self._tensors, self.mask, self.policy_context), index))

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
        rows = RowState.start(self.policy, PolicyBatch(ids, self.max_steps, self.task))
        return Units(rows.step, rows.policy, rows.log_survival, past)

    def decide(self, units: Units, readings: Readings) -> tuple[Tensor, Units]:
        """Ask the policy about units after one more step, but for those at their last, which exit.

        Returns:
            The exit mask, `(units,)` bool, and the units after the step.
        """
        last = units.step + 1 >= self.max_steps
        if not bool(last.any()):
            return self._ask(units, readings)
        exits = last.clone()
        asked = (~last).nonzero().flatten()
        if not len(asked):
            return exits, units._replace(step=units.step + 1)
        answers, after = self._ask(units.take(asked), readings.take(asked))
        exits[asked] = answers
        # Those at their last step leave; until then their state is that of some other unit.
        order = torch.arange(len(asked), device=asked.device)
        places = torch.zeros_like(units.step).index_copy(0, asked, order)
        return exits, after.take(places)._replace(step=units.step + 1)

    def _ask(self, units: Units, readings: Readings) -> tuple[Tensor, Units]:
        rows = RowState(units.step, units.state, units.log_survival)
        batch = PolicyBatch(units.step, self.max_steps, self.task)
        source = cast(Source, readings)  # of which one step is read, and nothing more
        view, log_survival = read_step(source, self.policy.needs, rows, batch)
        exits, state = self.policy.decide(view, units.state)
        if isinstance(exits, bool):
            exits = torch.full_like(units.step, exits, dtype=torch.bool)
        if exits.dtype != torch.bool or exits.shape != units.step.shape:
            expected = f"bool, shape ({units.size},): one answer for each position that runs"
            got = f"{exits.dtype} {tuple(exits.shape)}"
            remedy = "Compare per position, and reduce over every dimension but the first."
            argument = f"exit mask of {self.policy!r}"
            raise ArgumentError(argument, expected=expected, got=got, remedy=remedy)
        return exits, Units(view.index, state, log_survival, units.past)


def unit_ids(row_ids: Tensor, length: int | None) -> Tensor:
    """Return ids of positions, `(rows, length)` long, from the row id and the position alone.

    If `length` is None, rows halt together: they are units with their ids, `(rows,)`.
    """
    if length is None:
        return row_ids
    position = torch.arange(length, device=row_ids.device)
    return (row_ids << _POSITION_BITS)[:, None] + position
