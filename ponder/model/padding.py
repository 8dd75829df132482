"""Padding: the one owner of masks, and of the lengths that lie in a model's tensors.

A model that declares its `Padding` can be given rows of different lengths in one batch. Sequences
are padded on the right; nothing about lengths is guessed from shapes.
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
"""What stands at real positions in the masks that Transformers and PyTorch know, by name."""


@dataclass(frozen=True)
class Along:
    """The dimensions of a tensor that are as long as its sequences, and the value at padding.

    Args:
        dims: Dimensions of the batched tensor; 0 is the batch.
        fill: The value at padding, or a function of the tensor that gives it.

    Example:
        >>> ids = ponder.model.padding.Along(dims=(1,), fill=0)  # token ids (batch, length), padded with 0
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
        made = tensor.new_full(shape, self.fill(tensor) if callable(self.fill) else self.fill)
        made[tuple(slice(size) for size in tensor.shape)] = tensor
        return made


Lengths = Callable[[str, Tensor], Along | None]
"""A function from a tensor, and its name where it lies in a dict, to its lengths; None where it has none."""


@dataclass(frozen=True)
class Padding:
    """The lengths in a model's tensors.

    Args:
        mask: Name of the mask `(batch, length)` in the context of a call; made where a streamed
            example has none.
        real: Its value at real positions: 1, or False for PyTorch's `src_key_padding_mask`; of
            these two names as all know them.
        inputs: The inputs' tensors of two or more dimensions.
        context: By name, the tensors in the context of a call or of the steps that have a length;
            others have none. A `ponder.Shared` tensor named here is a function of the length alone,
            so that a longer one may be cropped.
        optional: Whether the stem leaves out a mask that hides nothing. Rows with and without one
            could not meet, so a short spare row goes through the stem with every batch of a data
            set or a stream.

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
        """Return the positions that are not padding, `(batch, length)` bool; None where no mask says so.

        The mask, this one or one that all know, may be in any of several contexts; what is no
        mapping has none. One of another length than `width`, whose stem made other positions, says
        nothing.
        """
        known = {self.mask: self.real, **REAL}
        for context in contexts:
            for name, real in known.items():
                mask = context.get(name) if isinstance(context, Mapping) else None
                if isinstance(mask, Tensor) and mask.dim() == 2 and width in (None, mask.shape[1]):
                    return (mask != 0) == bool(real)
        return None

    def of_inputs(self, name: str, tensor: Tensor) -> Along | None:
        """Return the lengths of a tensor of the inputs; a dict may hold what else is in the context."""
        return self.of_context(name, tensor) or (self.inputs if tensor.dim() > 1 else None)

    def of_context(self, name: str, tensor: Tensor) -> Along | None:
        """Return the lengths of a tensor of the context."""
        return self.context.get(name, Along(fill=not self.real) if name == self.mask else None)

    def of_hidden(self, name: str, tensor: Tensor) -> Along | None:
        """Return the lengths of a tensor of a hidden state, which has some with three dimensions or more."""
        return Along() if tensor.dim() > 2 else None


def hidden_key(mask: Tensor) -> float:
    """Return the value of hidden keys in a mask as layers take it: the lowest where it is added to scores, else 0."""
    return torch.finfo(mask.dtype).min if mask.is_floating_point() else 0


def width_of(hidden: Tree) -> int:
    """Return the length of the sequences in a hidden state; 0 where it has none."""
    return next((one.shape[1] for _, one in tensors(hidden) if one.dim() > 2), 0)


def last_position(real: Tensor) -> Tensor:
    """Return the last real position of every row, 1-based, `(batch,)`; 0 where there is none."""
    return (real.long() * torch.arange(1, real.shape[1] + 1, device=real.device)).amax(1)


def join_rows(
    trees: Sequence[Tree],
    lengths: Lengths | None = None,
    length: int = 0,
    *,
    sizes: Sequence[int] | None = None,
    path: str = "rows",
) -> Tree:
    """Join the rows of several trees to one tree, in their order; what belongs to all rows must be the same in all.

    Args:
        trees: Trees of one structure, batch first. Of one tree alone, the sequences are cut or
            filled.
        lengths: Which tensors have a length; None where nothing has.
        length: To what joined sequences are cropped, or padded on the right; 0 leaves them as they
            are.
        sizes: The number of rows of each tree, where a None beside tensors becomes zeros, as in the
            state of a policy: a value that is not there yet. Elsewhere it says something of its own
            (a mask that is None hides nothing).
        path: The name of the trees, for messages.
    """
    join = partial(_join_leaves, lengths, length, sizes, path)
    if isinstance(trees[0], Tensor):  # the usual case, without the overhead of a tree
        return join((), *trees)
    return pytree.tree_map_with_path(join, *trees)


def _join_leaves(
    lengths: Lengths | None,
    length: int,
    sizes: Sequence[int] | None,
    path: str,
    place: Any,
    *leaves: Any,
) -> Any:
    if sizes is not None and (known := [leaf for leaf in leaves if isinstance(leaf, Tensor)]):
        zeros = [known[0].new_zeros(size, *known[0].shape[1:]) for size in sizes]
        leaves = tuple(
            zero if leaf is None else leaf for leaf, zero in zip(leaves, zeros, strict=True)
        )
    first, along = leaves[0].value if isinstance(leaves[0], Shared) else leaves[0], None
    if lengths is not None and length and isinstance(first, Tensor):
        along = lengths(str(getattr(place[0], "key", "")) if place else "", first)
    if not [leaf for leaf in leaves if not isinstance(leaf, Tensor)]:
        rows = leaves if along is None else [along.resize(leaf, length) for leaf in leaves]
        return rows[0] if len(rows) == 1 else torch.cat(rows)
    values = [leaf.value if isinstance(leaf, Shared) else leaf for leaf in leaves]
    if along is not None and isinstance(leaves[0], Shared):
        return Shared(
            along.resize(max(values, key=lambda tensor: tensor.shape[along.dims[-1]]), length)
        )
    if all(value is first or alike(value, first) for value in values):
        return leaves[0]
    expected, got = (
        "rows of one kind, with one value of what all rows share",
        [type(leaf).__name__ for leaf in leaves],
    )
    remedy = "Rows that are to share a batch must have states of one kind; declare lengths with ponder.Padding."
    raise ArgumentError(path + pytree.keystr(place), expected=expected, got=got, remedy=remedy)
