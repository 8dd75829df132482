"""Padding: masks, and the lengths of the tensors of a model.

A model that declares its `Padding` can be given rows of different lengths in one batch: `join_rows`
resizes the tensors that have a length and concatenates all. Sequences are padded on the right;
nothing about lengths is guessed from shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ponder._utils.trees import Shared, Tree, alike, tensors
from ponder.errors import ArgumentError

__all__ = [
    "REAL",
    "Along",
    "Lengths",
    "Padding",
    "hidden_key",
    "join_rows",
    "last_position",
    "width_of",
]

REAL: Mapping[str, int | bool] = {"attention_mask": 1, "src_key_padding_mask": False}
"""The value at real positions in the masks of Transformers and PyTorch, by their names."""


@dataclass(frozen=True)
class Along:
    """The dimensions of a tensor that are as long as its sequences, and the value at padding.

    Args:
        dims: Dimensions of the batched tensor; 0 is the batch.
        fill: The value at padding, or a function of the tensor that gives it.

    Example:
        >>> ids = ponder.model.padding.Along(dims=(1,), fill=0)  # (batch, length), padded with 0
        >>> ids.resize(torch.tensor([[5, 6]]), 4), ids.resize(torch.tensor([[5, 6, 0, 0]]), 2)
        (tensor([[5, 6, 0, 0]]), tensor([[5, 6]]))
    """

    dims: tuple[int, ...] = (1,)
    fill: float | bool | Callable[[Tensor], float] = 0

    def resize(self, tensor: Tensor, length: int) -> Tensor:
        """Return `tensor` at `length`, cut (a view) or filled at its right ends."""
        shape = list(tensor.shape)
        for dim in self.dims:
            shape[dim] = length
            if tensor.shape[dim] > length:
                tensor = tensor.narrow(dim, 0, length)
        if shape == list(tensor.shape):
            return tensor
        fill = self.fill
        if callable(fill):
            fill = fill(tensor)
        resized = tensor.new_full(shape, fill)
        resized[tuple(slice(size) for size in tensor.shape)] = tensor
        return resized


Lengths = Callable[[str, Tensor], Along | None]
"""A function from the name of a tensor in a dict, or "", and the tensor to its lengths, if any."""


@dataclass(frozen=True)
class Padding:
    """The lengths in a model's tensors.

    Args:
        mask: Name of the mask `(batch, length)` in the context of a call; a streamed example
            without a mask is given one.
        real: Its value at real positions, 1 or False. For the names ``attention_mask`` and
            ``src_key_padding_mask`` the usual value is used.
        inputs: The inputs' tensors of two or more dimensions.
        context: By name, the tensors with a length in the context of a call or of the steps. A
            `ponder.Shared` tensor named here must depend on the length alone, so that a longer one
            may be cropped.
        optional: Whether the stem drops a mask that hides nothing. Rows with and without a mask
            cannot share a batch; therefore a dummy row with one real token, which forces the mask,
            goes through the stem with every batch of a data set or a stream.

    Example:
        >>> padding = ponder.Padding(mask="src_key_padding_mask", real=False)
        >>> padding.positions({"src_key_padding_mask": torch.tensor([[False, False, True]])})
        tensor([[ True,  True, False]])
    """

    mask: str = "attention_mask"
    real: bool | int = 1
    inputs: Along = Along()
    context: Mapping[str, Along] = field(default_factory=dict)
    optional: bool = False

    def positions(self, *contexts: Any, width: int | None = None) -> Tensor | None:
        """Return the positions that are not padding, `(batch, length)` bool; None without a mask.

        Args:
            contexts: Where the mask, this one or one of `REAL`, is looked up. Arguments that are
                not mappings are ignored.
            width: The length that the mask must have: a stem may make other positions of the
                inputs, which the mask of the inputs does not describe. None takes any.
        """
        known = {self.mask: self.real, **REAL}
        for context in contexts:
            for name, real in known.items():
                mask = context.get(name) if isinstance(context, Mapping) else None
                if isinstance(mask, Tensor) and mask.dim() == 2 and width in (None, mask.shape[1]):
                    return (mask != 0) == bool(real)
        return None

    def of_inputs(self, name: str, tensor: Tensor) -> Along | None:
        """Return the lengths of a tensor of the inputs; a dict of inputs may hold context, too."""
        known = self.of_context(name, tensor)
        if known is None and tensor.dim() > 1:
            return self.inputs
        return known

    def of_context(self, name: str, tensor: Tensor) -> Along | None:
        """Return the lengths of a tensor of the context."""
        if name == self.mask and name not in self.context:
            return Along(fill=not self.real)
        return self.context.get(name)

    def of_hidden(self, name: str, tensor: Tensor) -> Along | None:
        """Return the lengths of a tensor of a hidden state, if it has three or more dimensions."""
        return Along() if tensor.dim() > 2 else None


def hidden_key(mask: Tensor) -> float:
    """Return the value of hidden keys in a layer's mask.

    It is the lowest number of a mask in floating point, which is added to scores, else 0.
    """
    return torch.finfo(mask.dtype).min if mask.is_floating_point() else 0


def width_of(hidden: Tree) -> int:
    """Return the length of the sequences in a hidden state; 0 if it has no length."""
    return next((one.shape[1] for _, one in tensors(hidden) if one.dim() > 2), 0)


def last_position(real: Tensor) -> Tensor:
    """Return the last real position of every row, 1-based, `(batch,)`; 0 if all is padding."""
    return (real.long() * torch.arange(1, real.shape[1] + 1, device=real.device)).amax(1)


@dataclass(frozen=True)
class _Joining:
    """How leaves are joined; the fields are the arguments of `join_rows`."""

    lengths: Lengths | None
    length: int
    path: str


def join_rows(
    trees: Sequence[Tree],
    lengths: Lengths | None = None,
    length: int = 0,
    *,
    path: str = "rows",
) -> Tree:
    """Join the rows of several trees, in their order, to one tree.

    A value that belongs to all rows must be the same in all trees.

    Args:
        trees: Trees of one structure, batch first. If there is only one, its sequences are cropped
            or padded.
        lengths: Which tensors have a length; None if no tensor has one.
        length: The length to which joined sequences are cropped or padded on the right; 0 leaves
            them unchanged.
        path: The name of the trees, for messages.

    Raises:
        ArgumentError: Leaves at one place are of different kinds, or have different values although
            they belong to all rows.
    """
    joining = _Joining(lengths, length, path)
    join = partial(_join_leaves, joining)
    if isinstance(trees[0], Tensor):  # the usual case, without the overhead of a tree
        return join((), *trees)
    return pytree.tree_map_with_path(join, *trees)


def _join_leaves(joining: _Joining, place: pytree.KeyPath, *leaves: Tree) -> Tree:
    """Join the leaves at one place of several trees.

    Tensors are resized to one length and concatenated. Of `Shared` tensors that have a length, the
    longest is resized. Other values must be equal in all trees, of which one is returned.
    """
    along = _along(joining, place, leaves[0])
    if all(isinstance(leaf, Tensor) for leaf in leaves):
        return _concatenated(leaves, along, joining.length)
    values = [_unwrapped(leaf) for leaf in leaves]
    if along is not None and isinstance(leaves[0], Shared):
        dim = along.dims[-1]
        longest = max(values, key=lambda tensor: tensor.shape[dim])
        return Shared(along.resize(longest, joining.length))
    if all(value is values[0] or alike(value, values[0]) for value in values):
        return leaves[0]
    raise ArgumentError(
        joining.path + pytree.keystr(place),
        expected="rows of one kind, with one value of what all rows share",
        got=[type(leaf).__name__ for leaf in leaves],
        remedy="Rows that are to share a batch must have states of one kind; declare lengths with "
        "ponder.Padding.",
    )


def _concatenated(rows: tuple[Tensor, ...], along: Along | None, length: int) -> Tensor:
    """Return rows of several batches as one batch, at one length if they have lengths."""
    if along is not None:
        rows = tuple(along.resize(tensor, length) for tensor in rows)
    if len(rows) == 1:
        return rows[0]
    return torch.cat(rows)


def _along(joining: _Joining, place: pytree.KeyPath, leaf: Tree) -> Along | None:
    """Return the lengths of a leaf, by its name in the tree; None if it keeps its size."""
    tensor = _unwrapped(leaf)
    if joining.lengths is None or not joining.length or not isinstance(tensor, Tensor):
        return None
    name = ""
    if place:
        name = str(getattr(place[0], "key", ""))
    return joining.lengths(name, tensor)


def _unwrapped(leaf: Tree) -> Tree:
    return leaf.value if isinstance(leaf, Shared) else leaf
