"""The engine: rows at different steps share a batch, and their positions halt one by one.

    admit    rows take free slots, before their first step
        advance  one step: run the running, read them, call the policy, keep the answers at exits
    finished rows whose real positions have all halted leave their slots

`Loop` admits one batch and advances until it is empty; `carry` refills slots as they become free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ponder._utils.trees import Tree, map_tensors, take_rows
from ponder.loops.deciding import Decider, Readings, Units, unit_ids
from ponder.loops.places import Places
from ponder.loops.positions import Parts, hold, over_positions, real_units
from ponder.model.heads import LambdaHead, next_input
from ponder.model.padding import join_rows
from ponder.model.readouts import mean
from ponder.model.steps import Context

__all__ = [
    "Answers",
    "Rows",
    "Slots",
]


class Rows(NamedTuple):
    """What is known of each row in a slot: a tree, rows first."""

    number: Tensor  # the caller's number, `(rows,)` long
    step: Tensor  # that it has finished, `(rows,)` long
    hidden: Tree
    context: Context
    policy_context: Mapping[str, Tensor] | None
    mask: Tensor | None  # which positions are not padding, `(rows, length)` bool
    real: Tensor  # the same of units: `(rows, length)`, or `(rows,)` if rows halt together
    running: Tensor  # as `real`
    exit_step: Tensor  # as `real`, long; 0 before the exit
    outputs: Tensor | None  # `(*real, …)`; None before the first step


@dataclass(frozen=True, eq=False)
class Answers:
    """Rows that have left, in the order of leaving.

    Args:
        number: The number of each row, `(rows,)` long.
        outputs: The head's outputs at the exits, `(rows, length, …)`; zeros at padding.
        exit_step: The exit steps, `(rows, length)` long; 0 at padding. `(rows,)` of states without
            positions.
        hidden: The states at the exits, `(rows, length, …)`.
    """

    number: Tensor
    outputs: Tensor
    exit_step: Tensor
    hidden: Tree

    @staticmethod
    def in_order(parts: Sequence[Answers]) -> Answers:
        """Join rows, and put them into the order of their numbers."""
        trees = [(part.number, part.outputs, part.exit_step, part.hidden) for part in parts]
        joined = join_rows(trees)
        if len(parts) == 1:
            return Answers(*joined)
        return Answers(*take_rows(joined, torch.argsort(joined[0])))


class Slots:
    """The rows that run, at most at one step more each time that `advance` is called."""

    def __init__(self, parts: Parts, decider: Decider) -> None:
        self.parts = parts
        self.decider = decider
        self.together = parts.halted == "together"
        needs = decider.policy.needs
        self.needs_hazard = "hazard" in needs
        self.needs_output = "output" in needs
        self.rows: Rows | None = None
        self.units: Units | None = None
        self._fresh: Units | None = None  # before their first step
        self._kept: Tree = None  # the step's kept values of all positions
        self._changed: Tensor | None = None  # since it was kept, `(rows, length)` bool

    def __len__(self) -> int:
        return 0 if self.rows is None else len(self.rows.number)

    def admit(
        self,
        hidden: Tree,
        context: Context,
        *,
        mask: Tensor | None,
        number: Tensor,
        row_ids: Tensor,
        policy_context: Mapping[str, Tensor] | None = None,
        first: int = 0,
    ) -> None:
        """Give rows their slots; `first` is the position of their first one in the whole row."""
        real = real_units(hidden, mask, together=self.together)
        if not self.together:
            row_ids = unit_ids(row_ids, real.shape[1]) + first
        past = None
        if self.needs_hazard:
            past = start_past(self.parts, self._units_of(hidden, real), mask)
        rows = Rows(
            number=number,
            step=torch.zeros_like(number),
            hidden=hidden,
            context=context,
            policy_context=policy_context,
            mask=mask,
            real=real,
            running=real,
            exit_step=torch.zeros_like(real, dtype=torch.long),
            outputs=None,
        )
        if self.rows is None:
            self.rows = rows
        else:
            self._join(rows)
        fresh = self.decider.start(row_ids[real], past)
        if self._fresh is not None:
            fresh = self._fresh.join(fresh)
        self._fresh = fresh

    def advance(self) -> Answers | None:
        """Bring all rows one step further, and return those that have finished, if any."""
        assert self.rows is not None
        rows = self.rows._replace(step=self.rows.step + 1)
        flat = rows.running.flatten().nonzero().flatten()
        everything = bool((rows.running == rows.real).all())
        hidden = self._run(rows, flat, everything)
        rows = rows._replace(hidden=hidden)

        exits, outputs = self._ask(rows, flat)
        exiting = flat[exits]
        if not len(exiting) and rows.outputs is not None:
            self.rows = rows
            return None
        if outputs is None:  # no head is called for units that run on
            outputs = self.parts.head(self._units_of(rows.hidden, rows.running, exiting))
        else:
            outputs = outputs[exits]
        self.rows = _with_answers(rows, exiting, outputs)
        assert self.units is not None
        self.units = self.units.take((~exits).nonzero().flatten())
        return self._leave()

    def _run(self, rows: Rows, flat: Tensor, everything: bool) -> Tree:
        """Return the states after a step: all of them, or those of the running positions."""
        visible = rows.mask
        if self.parts.halted == "hidden" and not everything:
            visible = rows.running
        if everything or self.together:
            self._kept = self._changed = None
            return self.parts.call_step(rows.hidden, visible, rows.step, rows.context)
        if not self.parts.runs_positions:
            after = self.parts.call_step(rows.hidden, visible, rows.step, rows.context)
            return hold(rows.running, after, rows.hidden)
        changed = None
        if self._kept is not None and self._changed is not None:
            needed = self._changed if visible is None else self._changed & visible
            changed = needed.flatten().nonzero().flatten()
        count, length = rows.running.shape
        places = Places(count, length, flat, changed, visible)
        after, self._kept = self.parts.call_positions(
            rows.hidden, places, self._kept, rows.step, rows.context
        )
        self._changed = rows.running
        if isinstance(after, Tensor):  # the usual case, without the overhead of a tree
            return places.put(rows.hidden, after)
        return pytree.tree_map(places.put, rows.hidden, after)

    def _ask(self, rows: Rows, flat: Tensor) -> tuple[Tensor, Tensor | None]:
        """Call the policy for the running units; return the exit mask and the outputs it read."""
        features = self._units_of(rows.hidden, rows.running, flat)
        output = None
        if self.needs_output:
            output = self.parts.head(features)
        units = self._all_units()
        hazard_logit = None
        if self.needs_hazard:
            hazard_logit, past = read_hazards(self.parts, features, units.past, rows.mask)
            units = units._replace(past=past)
        context = None
        if rows.policy_context is not None:
            context = map_tensors(
                lambda value: self._take(value, rows.running, flat), rows.policy_context
            )
        readings = Readings(output, features, hazard_logit, self._mask_of_units(rows), context)
        mask, self.units = self.decider.decide(units, readings)
        return mask, output

    def _all_units(self) -> Units:
        """Return the units that run, those before their first step last."""
        fresh = self._fresh
        self._fresh = None
        if self.units is None:
            assert fresh is not None
            return fresh
        if fresh is None:
            return self.units
        return self.units.join(fresh)

    def _units_of(self, hidden: Tree, real: Tensor, flat: Tensor | None = None) -> Tensor:
        """Return the features of units, `(units, …)`: those of `flat`, or the real ones."""
        if flat is None:
            flat = real.flatten().nonzero().flatten()
        return self._take(self.parts.read(hidden), real, flat)

    def _take(self, tensor: Tensor, real: Tensor, flat: Tensor) -> Tensor:
        tensor = tensor.flatten(0, real.dim() - 1)
        return tensor if len(flat) == len(tensor) else tensor.index_select(0, flat)

    def _mask_of_units(self, rows: Rows) -> Tensor | None:
        return rows.mask if self.together else None

    def _leave(self) -> Answers | None:
        """Free the slots of rows that have no running units, and return their answers."""
        rows = self.rows
        assert rows is not None
        runs = rows.running.unsqueeze(-1).flatten(1).any(1)
        finished = (~runs).nonzero().flatten()
        if not len(finished):
            return None
        leaving = take_rows(rows, finished)
        remaining = runs.nonzero().flatten()
        if len(remaining):
            self.rows, self._kept, self._changed = take_rows(
                (rows, self._kept, self._changed), remaining
            )
        else:
            self.rows = self.units = self._kept = self._changed = None
        exit_step = over_positions(self.parts, leaving.exit_step, leaving.hidden, leaving.mask)
        return Answers(leaving.number, leaving.outputs, exit_step, leaving.hidden)

    def _join(self, fresh: Rows) -> None:
        rows = self.rows
        assert rows is not None
        if rows.outputs is not None and fresh.outputs is None:
            fresh = fresh._replace(
                outputs=rows.outputs.new_zeros(len(fresh.number), *rows.outputs.shape[1:])
            )
        self.rows = join_rows([rows, fresh])
        if self._kept is not None and self._changed is not None:
            added = torch.ones_like(fresh.running)
            self._changed = torch.cat([self._changed, added])
            self._kept = map_tensors(
                lambda kept: torch.cat([kept, kept.new_zeros(len(fresh.number), *kept.shape[1:])]),
                self._kept,
            )


def start_past(parts: Parts, features: Tensor, mask: Tensor | None) -> Tensor | None:
    """Return the input of a Lambda head with a history before the first step, else None."""
    head = parts.lambda_head
    if not isinstance(head, LambdaHead) or head.history == 1:
        return None
    return head.before_first_step(_pooled(features, mask))


def read_hazards(
    parts: Parts, features: Tensor, past: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return hazard logits of units, `(units,)`, at least float32, and the Lambda head's input."""
    head = parts.lambda_head
    assert head is not None
    now = features
    if isinstance(head, LambdaHead):
        now = _pooled(features, mask)
    if past is not None:
        past = next_input(now, past)
        now = past
    logit = head(now).reshape(-1)
    return logit.to(torch.promote_types(logit.dtype, torch.float32)), past


def _pooled(features: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over the positions of units that are rows; others unchanged."""
    return mean(features, mask) if features.dim() > 2 else features


def _with_answers(rows: Rows, exiting: Tensor, answers: Tensor) -> Rows:
    """Return rows with the outputs and the exit steps of units that exit, which run no longer."""
    shape = rows.running.shape
    outputs = rows.outputs
    if outputs is None:
        outputs = answers.new_zeros(*shape, *answers.shape[1:])
    flat_outputs = outputs.flatten(0, len(shape) - 1).index_copy(0, exiting, answers)
    each_step = rows.step.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).flatten()
    exit_step = rows.exit_step.flatten().index_copy(0, exiting, each_step[exiting])
    running = rows.running.flatten().index_fill(0, exiting, False)
    return rows._replace(
        outputs=flat_outputs.view(outputs.shape),
        exit_step=exit_step.view(shape),
        running=running.view(shape),
    )
