"""Positions of a looped model are rows of the one loop: a `ponder.running.Source`.

    advance  one step of the running positions; those that have halted keep their states
    read     features, outputs and hazards of the running positions, on demand, once a step
    keep     the other positions have halted; a row leaves with its last running position

In training no row leaves: `halt` lets positions keep their states, and all are computed and read.

What the loop calls a row is a *unit* here: a position that is not padding, in the order of the
batch, or a whole row if its positions halt together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

import torch
from einops import repeat
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ponder._utils.arrays import as_like
from ponder._utils.trees import Tree, first_tensor, map_tensors, take_rows
from ponder.loops.places import Places
from ponder.model.heads import LambdaHead, next_input
from ponder.model.padding import join_rows
from ponder.model.readouts import mean
from ponder.model.steps import Context
from ponder.running.source import Ints

__all__ = [
    "Halted",
    "Parts",
    "PositionSource",
    "as_bool",
    "at_positions",
    "hold",
    "over_positions",
    "real_units",
]

Halted = Literal["frozen", "hidden", "together"]
_POSITION_BITS = 20


class Parts(Protocol):
    """The parts of a loop with which a source computes."""

    halted: Halted
    runs_positions: bool
    head: nn.Module
    lambda_head: nn.Module | None

    def call_step(self, hidden: Tree, mask: Tensor | None, index: Tensor, context: Context) -> Tree:
        """Return the states of all positions after a step."""

    def call_positions(
        self, hidden: Tree, places: Places, kept: Tree, index: Tensor, context: Context
    ) -> tuple[Tree, Tree]:
        """Return the states of the running positions after a step, and the kept values of all."""

    def read(self, hidden: Tree) -> Tensor:
        """Return the features of states."""


class _Rows(NamedTuple):
    """The rows of the batch that have a running position: a tree, rows first."""

    place: Tensor  # in the batch, `(rows,)` long
    step: Tensor  # that it has finished, `(rows,)` long
    hidden: Tree
    context: Context
    mask: Tensor | None  # which positions are not padding, `(rows, length)` bool
    real: Tensor  # which units are not padding: `(rows, length)` bool, or `(rows,)`
    running: Tensor  # as `real`
    kept: Tree = None  # what the step keeps of each position between two calls
    changed: Tensor | None = None  # the positions whose states are newer than `kept`, as `real`


class PositionSource:
    """The running units of a batch.

    Args:
        parts: The loop.
        hidden: The states before the first step, `(rows, length, …)`.
        context: The arguments of the step.
        mask: The positions that are not padding, `(rows, length)` bool; None if all are.
        use_hazard: Whether hazards will be read; past features are then kept.
        policy_context: Values that only policies read, by name, `(rows, length, …)` each.

    Attributes:
        policy_context: The values of the running units, `(units, …)`.
    """

    def __init__(
        self,
        parts: Parts,
        hidden: Tree,
        context: Context,
        mask: Tensor | None,
        *,
        use_hazard: bool,
        policy_context: Mapping[str, Tensor] | None = None,
    ) -> None:
        real = real_units(hidden, mask, together=parts.halted == "together")
        place = torch.arange(len(real), device=real.device)
        step = torch.zeros_like(place)
        self._parts = parts
        self._rows = _Rows(place, step, hidden, context, mask, real, running=real)
        self._flat = _places_of(real)
        self._visible = mask
        self._some_halted = False
        self._runs_some = False  # whether the step is called for the running positions alone
        self._exited: list[tuple[Tensor, Tree]] = []
        self._cache: dict[str, Tensor] = {}
        self._past: Tensor | None = None
        head = parts.lambda_head
        if use_hazard and isinstance(head, LambdaHead) and head.history > 1:
            self._past = head.before_first_step(self._pooled(self.features()))
        self.policy_context: Mapping[str, Tensor] = {}
        if policy_context is not None:
            self.policy_context = {
                name: self._of_units(value) for name, value in policy_context.items()
            }

    @property
    def real(self) -> Tensor:
        """The units that are not padding: `(rows, length)` bool, or `(rows,)` of whole rows."""
        return self._rows.real

    @property
    def mask(self) -> Tensor | None:
        """The positions of units that are rows; None if units are positions."""
        return self._rows.mask if self._parts.halted == "together" else None

    def ids(self, row_ids: Tensor) -> Tensor:
        """Return ids of the running units from the row id, `(rows,)` long, and the position."""
        running = self._rows.running
        if running.dim() == 1:
            return row_ids
        position = torch.arange(running.shape[1], device=running.device)
        return self._of_units((row_ids << _POSITION_BITS)[:, None] + position)

    def advance(self, step: int) -> None:
        """Bring the running units one step further, which is `step` if they are at the same."""
        self._cache.clear()
        parts = self._parts
        rows = self._rows._replace(step=self._rows.step + 1)
        if self._runs_some:
            self._rows = self._run_positions(rows)
            return
        hidden = parts.call_step(rows.hidden, self._visible, rows.step, rows.context)
        if self._some_halted:
            hidden = hold(rows.running, hidden, rows.hidden)
        self._rows = rows._replace(hidden=hidden, kept=None, changed=None)

    def features(self) -> Tensor:
        """Return the features of the running units, `(units, …)`."""
        if "features" not in self._cache:
            self._cache["features"] = self._of_units(self._parts.read(self._rows.hidden))
        return self._cache["features"]

    def output(self) -> Tensor:
        """Return the outputs of the running units, `(units, …)`."""
        if "output" not in self._cache:
            self._cache["output"] = self._parts.head(self.features())
        return self._cache["output"]

    def output_of(self, index: Ints) -> Tensor:
        """Return the outputs of some of the running units, and compute no others."""
        chosen = as_like(index, self._flat)
        if "output" in self._cache:
            return self._cache["output"].index_select(0, chosen)
        outputs: Tensor = self._parts.head(self.features().index_select(0, chosen))
        return outputs

    def hazard_logit(self) -> Tensor:
        """Return the hazard logits of the running units, `(units,)`, at least float32."""
        if "hazard" not in self._cache:
            head = self._parts.lambda_head
            assert head is not None  # the policy was checked
            read = self.features()
            if isinstance(head, LambdaHead):
                read = self._pooled(read)
            if self._past is not None:
                read = next_input(read, self._past)
                self._past = read
            logit: Tensor = head(read).reshape(-1)
            self._cache["hazard"] = logit.to(torch.promote_types(logit.dtype, torch.float32))
        return self._cache["hazard"]

    def keep(self, index: Ints) -> None:
        """Keep some of the running units; rows that have none any more leave the batch."""
        chosen = as_like(index, self._flat)
        self._past, self.policy_context = take_rows((self._past, self.policy_context), chosen)
        before = self._rows.running
        flat = self._flat.index_select(0, chosen)
        running = torch.zeros_like(before.flatten()).index_fill(0, flat, True).view_as(before)
        rows = self._rows._replace(running=running)
        runs = running.view(len(running), -1).any(1)
        remaining = _places_of(runs)
        if len(remaining) < len(runs):
            exited = _places_of(~runs)
            self._exited.append(take_rows((rows.place, rows.hidden), exited))
            rows = take_rows(rows, remaining)
            flat = _places_of(rows.running)
        self._rows = rows
        self._flat = flat
        self._some_halted = not torch.equal(rows.running, rows.real)
        self._runs_some = self._some_halted and self._parts.runs_positions
        self._visible = rows.mask
        if self._some_halted and self._parts.halted == "hidden":
            self._visible = rows.running

    def halt(self, exits: Tensor) -> None:
        """Let units keep their states from now on, `(units,)` bool; they are read as before."""
        rows = self._rows
        running = rows.running & ~at_positions(exits, rows.real)
        self._rows = rows._replace(running=running)
        self._some_halted = True
        if self._parts.halted == "hidden":
            # A row without any visible position would be NaN, and so would its gradient.
            self._visible = torch.where(running.any(1, keepdim=True), running, rows.real)

    def detach(self) -> None:
        """End the gradient at the states: none flows from the next step into those before."""
        self._rows = self._rows._replace(hidden=map_tensors(Tensor.detach, self._rows.hidden))

    def states(self) -> Tree:
        """Return the last states of all rows of the batch, in its order."""
        if not self._exited:
            return self._rows.hidden
        place, hidden = join_rows([*self._exited, (self._rows.place, self._rows.hidden)])
        return take_rows(hidden, torch.argsort(place))

    def _run_positions(self, rows: _Rows) -> _Rows:
        """Return the rows after a step that computes the running positions alone."""
        changed = None
        if rows.changed is not None:
            # Halted positions that are hidden need no keys and values.
            changed = self._flat
            if self._parts.halted == "frozen":
                changed = _places_of(rows.changed)
        count, length = rows.running.shape
        places = Places(count, length, self._flat, changed, self._visible)
        after, kept = self._parts.call_positions(
            rows.hidden, places, rows.kept, rows.step, rows.context
        )
        if isinstance(after, Tensor):  # the usual case, without the overhead of a tree
            hidden = places.put(rows.hidden, after)
        else:
            hidden = pytree.tree_map(places.put, rows.hidden, after)
        return rows._replace(hidden=hidden, kept=kept, changed=rows.running)

    def _of_units(self, tensor: Tensor) -> Tensor:
        """Return the running units of a tensor `(rows, length, …)`, or `(rows, …)`."""
        tensor = tensor.flatten(0, self._rows.running.dim() - 1)
        if len(self._flat) == len(tensor):
            return tensor
        return tensor.index_select(0, self._flat)

    def _pooled(self, features: Tensor) -> Tensor:
        """Return the mean over the positions of units that are rows; others unchanged."""
        return mean(features, self._rows.mask) if features.dim() > 2 else features


def as_bool(mask: Tensor | None) -> Tensor | None:
    """Return a mask of the caller's, 1 or True at real positions, as booleans."""
    return None if mask is None else mask != 0


def real_units(hidden: Tree, mask: Tensor | None, *, together: bool) -> Tensor:
    """Return which units are not padding: `(rows, length)` bool, or `(rows,)` of whole rows."""
    states = first_tensor(hidden)
    if together:
        return torch.ones(states.shape[0], dtype=torch.bool, device=states.device)
    if mask is None:
        return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    return mask


def at_positions(values: Tensor, real: Tensor) -> Tensor:
    """Return the values of units at their places, `(*real.shape, …)`; zeros at padding."""
    if len(values) == real.numel():
        at_all: Tensor = values.unflatten(0, real.shape)
        return at_all
    placed = values.new_zeros(*real.shape, *values.shape[1:])
    placed[real] = values
    return placed


def over_positions(parts: Parts, exit_step: Tensor, hidden: Tree, mask: Tensor | None) -> Tensor:
    """Return exit steps `(rows, length)`, also of whole rows; 0 at padding."""
    if exit_step.dim() > 1 or parts.read(hidden).dim() < 3:
        return exit_step
    length = first_tensor(hidden).shape[1]
    expanded = repeat(exit_step, "rows -> rows length", length=length)
    return expanded if mask is None else torch.where(mask, expanded, 0)


def hold(running: Tensor, after: Tree, before: Tree) -> Tree:
    """Return the states `after` at running positions and those `before` at others."""

    def choose(new: Tensor, old: Tensor) -> Tensor:
        mask = running.reshape(*running.shape, *[1] * (new.dim() - running.dim()))
        return torch.where(mask, new, old)

    held: Tree = pytree.tree_map(choose, after, before)
    return held


def _places_of(mask: Tensor) -> Tensor:
    """Return where a mask is True, rising, counted from its first element."""
    return mask.flatten().nonzero().flatten()
