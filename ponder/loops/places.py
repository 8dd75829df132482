"""Places: which positions of a batch run, and how a step computes those alone.

A step that knows how to run some positions has a method `positions(hidden, places, kept)`. It takes
what belongs to the running positions out of a batch (`take`), brings what the others read of them
up to date (`renew`: keys and values, say), and lays the running ones out by row for attention
(`pad`, `unpad`). The loop puts the new states back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ponder._utils.trees import Tree, map_tensors

__all__ = ["Places", "PositionStep"]


@dataclass(frozen=True, eq=False)
class Places:
    """The running positions of a batch, in the order of the rows.

    Args:
        rows: Number of rows.
        length: Number of positions of a row, padding included.
        flat: The running positions, `(running,)` long and rising: row · length + position, from 0.
        changed: The positions whose states changed since `kept` was last renewed, as `flat`: the
            running ones, and those that halted at the step before. None if all did.
        visible: Which positions the running ones attend to, `(rows, length)` bool; None for all.

    Example:
        >>> places = ponder.loops.Places(rows=2, length=3, flat=torch.tensor([0, 2, 4]))
        >>> places.take(torch.arange(6.0).view(2, 3, 1)).flatten()
        tensor([0., 2., 4.])
        >>> places.pad(torch.tensor([1.0, 2.0, 3.0]))
        tensor([[1., 2.],
                [3., 0.]])
    """

    rows: int
    length: int
    flat: Tensor
    changed: Tensor | None = None
    visible: Tensor | None = None

    @cached_property
    def row(self) -> Tensor:
        """The row of each running position, `(running,)` long, from 0."""
        return torch.div(self.flat, self.length, rounding_mode="floor")

    @cached_property
    def position(self) -> Tensor:
        """The places of running positions in their rows, `(running,)` long, from 0."""
        return self.flat - self.row * self.length

    def take(self, tree: Tree) -> Tree:
        """Return the running positions, `(running, …)`, of tensors `(rows, length, …)`."""
        return map_tensors(lambda tensor: _positions(tensor).index_select(0, self.flat), tree)

    def put(self, tensor: Tensor, values: Tensor) -> Tensor:
        """Return `(rows, length, …)` with `values`, `(running, …)`, at running positions."""
        return _put(tensor, self.flat, values)

    def renew(
        self, kept: Tensor | None, make: Callable[[Tensor], Tensor], hidden: Tensor
    ) -> Tensor:
        """Return kept values of every position, `(rows, length, …)`, updated for changed states.

        Args:
            kept: The return value of the step before; None at the first call.
            make: A function from states `(positions, width)` to kept values, `(positions, …)`.
            hidden: The states, `(rows, length, width)`.
        """
        states = _positions(hidden)
        if kept is None or self.changed is None:
            everything: Tensor = make(states).unflatten(0, (self.rows, self.length))
            return everything
        return _put(kept, self.changed, make(states.index_select(0, self.changed)))

    def pad(self, values: Tensor) -> Tensor:
        """Arrange `values`, `(running, …)`, by row: `(rows, most, …)`, with zeros at row ends."""
        padded = values.new_zeros(self.rows * self._most, *values.shape[1:])
        padded = padded.index_copy(0, self._slot, values)
        by_row: Tensor = padded.unflatten(0, (self.rows, self._most))
        return by_row

    def unpad(self, padded: Tensor) -> Tensor:
        """Return the running positions, `(running, …)`, from padded ones, `(rows, most, …)`."""
        return _positions(padded).index_select(0, self._slot)

    @cached_property
    def to_renew(self) -> Places:
        """The positions whose states changed: those that layers before the last must run."""
        flat = self.changed
        if flat is None:
            flat = torch.arange(self.rows * self.length, device=self.flat.device)
        return Places(self.rows, self.length, flat, self.changed, self.visible)

    @cached_property
    def _counts(self) -> Tensor:
        return torch.bincount(self.row, minlength=self.rows)

    @cached_property
    def _most(self) -> int:
        return int(self._counts.max())

    @cached_property
    def _slot(self) -> Tensor:
        """The index of each running position in `pad`: row · most + its number within the row."""
        first = self._counts.cumsum(0) - self._counts
        rank = torch.arange(len(self.flat), device=self.flat.device) - first[self.row]
        return self.row * self._most + rank


@runtime_checkable
class PositionStep(Protocol):
    """A step that can run some positions of a batch, and leave the others unchanged.

    Beside `positions` it is called as any step, `step(hidden, attention_mask=…)`, while no position
    has halted.

    Example:
        >>> isinstance(ponder.loops.Block(8, heads=2), ponder.loops.PositionStep)
        True
    """

    def __call__(self, hidden: Tree, **context: Any) -> Tree:
        """Return the new states of all positions, `(rows, length, …)`."""

    def positions(
        self, hidden: Tree, places: Places, kept: Tree, **context: Any
    ) -> tuple[Tree, Tree]:
        """Compute the running positions alone.

        Args:
            hidden: The states of all positions, `(rows, length, …)`.
            places: Which positions run.
            kept: What the last call returned beside the states, for all positions, `(rows, length,
                …)`: keys and values, say. None at the first call.
            context: The arguments of the step that it names, `(rows, …)` each.

        Returns:
            The new states of the running positions, `(running, …)`, and what to keep.
        """


def _positions(tensor: Tensor) -> Tensor:
    # A pattern would say it better, but its parsing is felt at every step of a narrow model.
    return tensor.flatten(0, 1)


def _put(tensor: Tensor, flat: Tensor, values: Tensor) -> Tensor:
    return _positions(tensor).index_copy(0, flat, values).view_as(tensor)
