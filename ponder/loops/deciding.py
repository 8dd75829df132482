"""What a policy sees of a loop: units, which are positions, or whole rows where these halt together.

A policy is asked about units as it is about rows of a batch: each has an id, a step, a state, and readings of that
step. So every policy decides per position unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder._utils.trees import Tree, map_tensors, take_rows
from ponder.errors import ArgumentError
from ponder.model.padding import join_rows
from ponder.policies.base import ExitPolicy, PolicyBatch, StepView
from ponder.tasks import Task

__all__ = ["Decider", "Readings", "Units", "unit_ids"]

_POSITION_BITS = 20


class Units(NamedTuple):
    """The state of units between two steps: a tree, units first."""

    step: Tensor  # that each has finished, `(units,)` long
    state: Tree  # of the policy
    log_survival: Tensor | None  # log P(not stopped so far), if the policy reads hazards
    past: Tensor | None  # what the Lambda head read at the last step, if it has a history

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
        """Return both, in their order; a state that is not there yet is zeros beside one that is."""
        joined: Units = join_rows([first, second], sizes=[first.size, second.size])
        return joined


@dataclass(frozen=True, eq=False)
class Readings:
    """What can be read of units at one step; None if the policy does not need it.

    Args:
        output: The head's outputs, `(units, …)`.
        features: The readout's features, `(units, …)`.
        hazard_logit: The Lambda head's, `(units,)`, in float32 or float64.
        mask: Which positions are no padding, `(units, length)` bool, of units that are rows; None of positions.
        context: Values that the caller gave for the policy, by name, `(units, …)` each.
    """

    output: Tensor | None = None
    features: Tensor | None = None
    hazard_logit: Tensor | None = None
    mask: Tensor | None = None
    context: Mapping[str, Tensor] | None = None

    def take(self, index: Tensor) -> Readings:
        """Return the readings of some of the units."""
        parts = (self.output, self.features, self.hazard_logit, self.mask, self.context)
        return Readings(*take_rows(parts, index))

    def detach(self) -> Readings:
        """Return the readings outside the graph of gradients."""
        parts = (self.output, self.features, self.hazard_logit, self.mask, self.context)
        return Readings(*map_tensors(Tensor.detach, parts))


@dataclass(frozen=True)
class Decider:
    """A policy that decides on units, at most `max_steps` steps each."""

    policy: ExitPolicy
    max_steps: int
    task: Task

    def start(self, ids: Tensor, past: Tensor | None = None) -> Units:
        """Return units before their first step."""
        step = torch.zeros_like(ids)
        state = self.policy.init(PolicyBatch(ids, self.max_steps, self.task))
        return Units(step, state, step.float() if "hazard" in self.policy.needs else None, past)

    def decide(self, units: Units, readings: Readings) -> tuple[Tensor, Units]:
        """Ask the policy about units that have finished a step, but for those at their last, which exit.

        Returns:
            The exit mask, `(units,)` bool, and the units after the step.
        """
        last = units.step >= self.max_steps
        if not bool(last.any()):
            return self._ask(units, readings)
        exits = last.clone()
        asked = (~last).nonzero().flatten()
        if len(asked):
            answers, after = self._ask(units.take(asked), readings.take(asked))
            exits[asked] = answers
            # Those at their last step leave; their state is filled with that of others of the same kind.
            places = torch.zeros_like(units.step).index_copy(
                0, asked, torch.arange(len(asked), device=asked.device)
            )
            units = after.take(places)._replace(step=units.step)
        return exits, units

    def _ask(self, units: Units, readings: Readings) -> tuple[Tensor, Units]:
        log_survival = units.log_survival
        values: dict[str, Tensor] = {}
        if log_survival is not None and readings.hazard_logit is not None:
            logit = readings.hazard_logit
            values["hazard"] = logit.sigmoid()
            values["survival"] = log_survival.exp()
            log_survival = log_survival.to(logit.dtype) + F.logsigmoid(-logit)
            values["cdf"] = -torch.expm1(log_survival)
        for name in ("output", "features"):
            value = getattr(readings, name)
            if name in self.policy.needs and value is not None:
                values[name] = value
        context = readings.context if self.policy.needs & {"context", "group"} else None
        view = StepView(units.step, self.max_steps, values, self.task, readings.mask, context)
        exits, state = self.policy.decide(view, units.state)
        if isinstance(exits, bool):
            exits = torch.full_like(units.step, exits, dtype=torch.bool)
        if exits.dtype != torch.bool or exits.shape != units.step.shape:
            expected = f"bool, shape ({units.size},): one answer for each position that runs"
            got = f"{exits.dtype} {tuple(exits.shape)}"
            remedy = "Compare per position, and reduce over every dimension but the first."
            argument = f"exit mask of {self.policy!r}"
            raise ArgumentError(argument, expected=expected, got=got, remedy=remedy)
        return exits, units._replace(state=state, log_survival=log_survival)


def unit_ids(row_ids: Tensor, length: int | None) -> Tensor:
    """Return ids of positions, `(rows, length)` long, that depend on the row id and the position alone.

    Rows that halt together are units with their own ids, `(rows,)`, if `length` is None.
    """
    if length is None:
        return row_ids
    position = torch.arange(length, device=row_ids.device)
    return (row_ids << _POSITION_BITS)[:, None] + position
