"""Padding: the one owner of masks, and of the lengths that lie in a model's tensors.

A model that declares its `Padding` can be given rows of different lengths in one stream, and its batches get narrower
as their longest rows exit. Sequences are padded on the right; nothing about lengths is guessed from shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ponder._utils.trees import Shared, Tree, alike, map_tensors, tensors
from ponder.errors import ArgumentError

__all__ = [
    "REAL",
    "Along",
    "Lengths",
    "Padding",
    "along_of",
    "join_context",
    "join_rows",
    "last_position",
    "named_in",
    "positions",
]

REAL: Mapping[str, int | bool] = {"attention_mask": 1, "src_key_padding_mask": False}
"""What stands at real positions in the masks that Transformers and PyTorch know, by name."""

Lengths = Any  # an `Along` or None, a function from a tensor to one, or a mapping of such


@dataclass(frozen=True)
class Along:
    """The dimensions of a tensor that are as long as its sequences, and the value at padding.

    Args:
        dims: Dimensions of the batched tensor; 0 is the batch.
        fill: The value at padding, or a function of the tensor that gives it.

    Example:
        >>> ids = ponder.model.padding.Along(dims=(1,), fill=0)  # token ids (batch, length), padded with 0
        >>> ids.narrow(torch.tensor([[5, 6, 0, 0]]), 2)
        tensor([[5, 6]])
    """

    dims: tuple[int, ...] = (1,)
    fill: float | bool | Callable[[Tensor], float] = 0

    def narrow(self, tensor: Tensor, length: int) -> Tensor:
        """Return `tensor` up to `length` where it is longer: a view."""
        for dim in self.dims:
            if tensor.shape[dim] > length:
                tensor = tensor.narrow(dim, 0, length)
        return tensor

    def extend(self, tensor: Tensor, length: int) -> Tensor:
        """Return `tensor` at `length`, cut or filled at its right ends."""
        tensor = self.narrow(tensor, length)
        shape = list(tensor.shape)
        for dim in self.dims:
            shape[dim] = length
        if shape == list(tensor.shape):
            return tensor
        made = tensor.new_full(shape, self.fill(tensor) if callable(self.fill) else self.fill)
        made[tuple(slice(size) for size in tensor.shape)] = tensor
        return made


@dataclass(frozen=True)
class Padding:
    """The lengths in a model's tensors.

    Args:
        mask: Name of the mask `(batch, length)` in the context of a call; made where a streamed example has none.
        real: Its value at real positions: 1, or False for PyTorch's `src_key_padding_mask`; of these two names as all
            know them.
        inputs: The inputs' tensors of two or more dimensions.
        context: By name, the tensors in the context of a call or of the steps that have a length; others have none. A
            `ponder.Shared` tensor named here is a function of the length alone, so that a longer one may be cropped.
        pooled: Whether readouts give features without a length. Where not, batches do not get narrower.
        optional: Whether the stem leaves out a mask that hides nothing. Rows with and without one could not meet, so a
            short spare row goes through the stem with every batch of a data set or a stream.

    Example:
        >>> padding = ponder.Padding(mask="src_key_padding_mask", real=False)
        >>> padding.positions({"src_key_padding_mask": torch.tensor([[False, False, True]])})
        tensor([[ True,  True, False]])
    """

    mask: str = "attention_mask"
    real: bool | int = 1
    inputs: Along = Along()
    context: Mapping[str, Along] = field(default_factory=dict)
    pooled: bool = True
    optional: bool = False

    def positions(self, context: Mapping[str, Any]) -> Tensor | None:
        """Return the positions that are not padding, `(batch, length)` bool, by this mask or one that all know."""
        for name, real in (REAL if self.mask in REAL else {self.mask: self.real}).items():
            mask = context.get(name)
            if isinstance(mask, Tensor) and mask.dim() == 2:
                return (mask != 0) == bool(real)
        return None

    def lengths_of_inputs(self, inputs: Tree) -> Lengths:
        """Return the lengths of the inputs, by which `join_rows` joins them; a dict has them by name."""

        def of_input(tensor: Tensor) -> Along | None:
            return self.inputs if tensor.dim() > 1 else None

        if not isinstance(inputs, Mapping):
            return of_input
        return {name: self.of_context(name) or of_input for name in inputs}

    def of_context(self, name: str) -> Along | None:
        """Return the lengths of a context value, or None."""
        own = Along((1,), fill=not self.real) if name == self.mask else None
        return self.context.get(name, own)

    def of_hidden(self, tensor: Tensor) -> Along | None:
        """Return the lengths of a tensor of a hidden state, None where it has fewer than three dimensions."""
        return Along() if tensor.dim() > 2 else None

    def width(self, hidden: Tree) -> int | None:
        """Return the length of the sequences in a hidden state; None where it has none."""
        return next((one.shape[1] for _, one in tensors(hidden) if one.dim() > 2), None)

    def trim(self, hidden: Tree, context: Mapping[str, Any], length: int) -> tuple[Tree, dict[str, Any]]:
        """Return hidden states and the steps' context up to `length`: views, nothing is copied."""
        hidden = map_tensors(lambda one: one[:, :length] if one.dim() > 2 else one, hidden)
        return hidden, {name: _narrow(value, self.of_context(name), length) for name, value in context.items()}


_DEFAULT = Padding()


def positions(hidden: Tree, contexts: Sequence[Mapping[str, Any]], padding: Padding | None = None) -> Tensor | None:
    """Return the positions of a hidden state that are not padding, `(batch, length)` bool; None where unknown.

    The mask may be in one of several contexts. One of another length, whose stem made other positions, says nothing.
    """
    declared = padding or _DEFAULT
    found = [declared.positions(context) for context in contexts]
    width = declared.width(hidden)
    return next((real for real in found if real is not None and real.shape[1] == width), None)


def last_position(real: Tensor) -> Tensor:
    """Return the last real position of every row, 1-based, `(batch,)`; 0 where there is none."""
    return (real.long() * torch.arange(1, real.shape[1] + 1, device=real.device)).amax(1)


def named_in(inputs: Tree, context: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return all that a call names: its context, and its inputs, where these are a dict."""
    return {**context, **inputs} if isinstance(inputs, Mapping) else context


def along_of(lengths: Lengths, tensor: Tensor) -> Along | None:
    """Return the lengths of one tensor, by what names them of several."""
    along: Along | None = lengths(tensor) if callable(lengths) else lengths
    return along


def join_rows(
    trees: Sequence[Tree],
    sizes: Sequence[int],
    keep: Sequence[Tensor | None] | None = None,
    *,
    lengths: Lengths = None,
    length: int = 0,
    absent: Literal["refused", "zeros"] = "refused",
    path: str = "rows",
) -> Tree:
    """Join the rows of several trees to one tree, in their order; what belongs to all rows must be the same in all.

    Args:
        trees: Trees of one structure, batch first.
        sizes: The number of rows of each.
        keep: The positions of the rows to take, long tensors beside the tree's; None takes all.
        lengths: The `Along` of every tensor, a function from a tensor to its `Along` or None, or a dict of such like
            the trees; None where nothing has a length.
        length: To what joined sequences are cropped, or padded on the right; 0 leaves them as they are.
        absent: Whether a None that meets a tensor becomes zeros, as in the state of a policy, where a value is not
            there yet; elsewhere it says something of its own (a mask that is None hides nothing).
        path: The name of the trees, for messages.
    """
    keep = [None] * len(trees) if keep is None else keep
    present = [tree for tree in trees if tree is not None]
    first: Any = present[0] if present else None
    present = present if absent == "zeros" else list(trees)
    if isinstance(first, Tensor) and not [tree for tree in present if not isinstance(tree, Tensor)]:
        along = along_of(lengths, first) if length else None
        rows = [first.new_zeros(n, *first.shape[1:]) if t is None else t for t, n in zip(trees, sizes, strict=True)]
        rows = [t if index is None else t.index_select(0, index) for t, index in zip(rows, keep, strict=True)]
        rows = rows if along is None else [along.extend(tensor, length) for tensor in rows]
        return rows[0] if len(rows) == 1 else torch.cat(rows)
    if isinstance(first, Mapping | list | tuple) and all(type(tree) is type(first) for tree in present):
        parts = {}
        for key in first if isinstance(first, Mapping) else range(len(first)):
            own = lengths[key] if isinstance(lengths, Mapping) else lengths
            place, children = f"{path}[{key!r}]", [None if tree is None else tree[key] for tree in trees]
            parts[key] = join_rows(children, sizes, keep, lengths=own, length=length, absent=absent, path=place)
        kind: Any = type(first)
        if isinstance(first, Mapping):
            return kind(parts)
        return kind(*parts.values()) if hasattr(first, "_fields") else kind(parts.values())
    if isinstance(first, Shared):
        values = [tree.value for tree in trees]
        along = along_of(lengths, first.value) if isinstance(first.value, Tensor) else None
        if along is not None:
            return Shared(along.narrow(max(values, key=lambda tensor: tensor.shape[along.dims[-1]]), length))
        present, first = values, first.value
    if all(tree is first or alike(tree, first) for tree in present):
        return trees[0]
    raise ArgumentError(
        path,
        expected="rows of one kind, with one value of what belongs to the whole batch",
        got=[type(tree).__name__ for tree in trees],
        remedy="Rows that are to share a batch must have states of one kind; declare lengths with ponder.Padding.",
    )


def join_context(
    contexts: Sequence[Mapping[str, Any]],
    sizes: Sequence[int],
    padding: Padding | None,
    length: int,
    keep: Sequence[Tensor | None] | None = None,
) -> dict[str, Any]:
    """Join the contexts of several calls, or of their steps, to one; arguments as for `join_rows`."""
    joined = {}
    for name in dict.fromkeys(name for context in contexts for name in context):
        along = None if padding is None else padding.of_context(name)
        values = [context.get(name) for context in contexts]
        joined[name] = join_rows(values, sizes, keep, lengths=along, length=length, path=name)
    return joined


def _narrow(value: Any, along: Along | None, length: int) -> Any:
    if along is None:
        return value
    if isinstance(value, Shared):
        return Shared(_narrow(value.value, along, length))
    return map_tensors(lambda tensor: along.narrow(tensor, length), value)
