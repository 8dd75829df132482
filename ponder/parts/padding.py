"""Padding: where the length of a sequence lies in a model's tensors, and what stands beyond the end of a row.

A model that declares it can be given rows of different lengths in one stream (`ponder.StreamEngine`), and its batches
get narrower as their longest rows exit. Nothing about lengths is guessed from shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ponder._utils.trees import Shared, Tree, leaves, map_leaves, map_tensors, tensors
from ponder.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "REAL",
    "Along",
    "Lengths",
    "Padding",
    "check_masks",
    "lengths_in",
    "masked",
    "named_in",
    "real_positions",
    "with_lengths",
]

Fill = float | bool | Callable[[Tensor], float]

REAL: Mapping[str, int | bool] = {"attention_mask": 1, "src_key_padding_mask": False}
"""What stands at real positions in the masks that PyTorch and Transformers know, by name."""


def masked(mask: Tensor) -> float:
    """What hides a position in an attention mask: the lowest number in an additive one, `(batch, 1, …)`, else 0."""
    return torch.finfo(mask.dtype).min if mask.is_floating_point() and mask.dim() > 2 else 0


@dataclass(frozen=True)
class Along:
    """The dimensions of a tensor that are as long as its sequences, and what stands at padding.

    Args:
        dims: Dimensions of the batched tensor; 0 is the batch.
        fill: The value at padding, or a function of the tensor that gives it.

    Example:
        >>> ids = Along(dims=(1,), fill=0)  # token ids (batch, length), padded with 0
        >>> ids.narrow(torch.tensor([[5, 6, 0, 0]]), 2)
        tensor([[5, 6]])
    """

    dims: tuple[int, ...] = (1,)
    fill: Fill = 0

    def value(self, tensor: Tensor) -> float:
        """The value at padding."""
        return self.fill(tensor) if callable(self.fill) else self.fill

    def narrow(self, tensor: Tensor, length: int) -> Tensor:
        """`tensor` up to `length` where it is longer: a view."""
        for dim in self.dims:
            if tensor.shape[dim] > length:
                tensor = tensor.narrow(dim, 0, length)
        return tensor


Lengths = Any  # a function from a tensor to its `Along` or None, or a tuple or mapping of such


def with_lengths(along: Along | None) -> Callable[[Tensor], Along | None]:
    """A function that names the same lengths for every tensor."""
    return lambda tensor: along


@dataclass(frozen=True)
class Padding:
    """The lengths in a model's tensors. Sequences are padded on the right.

    Args:
        mask: Name of the mask `(batch, length)` in the context of a call; made where a streamed example has none.
        real: Its value at real positions: 1, or False for PyTorch's `src_key_padding_mask`. It goes with these names,
            by which readouts know them; a mask of another name may have either.
        inputs: The inputs' tensors of two or more dimensions.
        hidden: The hidden states' tensors of three or more dimensions; others have no length. Where that is not so of
            every part of a nested state, a tuple or dict like it: an `Along` for each part, or None for one without a
            length, such as memory slots beside the tokens.
        context: By name, the tensors in the context of a call or of the steps that have a length; others have none. A
            `ponder.Shared` tensor named here is a function of the length alone, so that a longer one may be cropped.
        stem: The stem of streamed rows, where the model's own gives a context that rows in another batch could not
            share (no mask where nothing is padded, say).
        pooled: Whether readouts give features without a length. Where not, batches do not get narrower, and what
            compares features leaves padding out, though the head pool them.
        mixed: Whether rows of several lengths may share a batch of a stream; where not, each waits for others of its
            own length.

    Example:
        >>> padding = Padding(mask="src_key_padding_mask", real=False)
        >>> padding.lengths({"src_key_padding_mask": torch.tensor([[False, False, True], [False, True, True]])})
        tensor([2, 1])
        >>> padding = Padding(hidden=(Along(), None))  # of a state (tokens, slots), both (batch, …, width)
        >>> state = (torch.zeros(2, 5, 8), torch.zeros(2, 4, 8))
        >>> (tokens, slots), _ = padding.trim(state, {}, length=3)
        >>> tokens.shape, slots.shape
        (torch.Size([2, 3, 8]), torch.Size([2, 4, 8]))
    """

    mask: str = "attention_mask"
    real: bool | int = 1
    inputs: Along = Along()
    hidden: Along | tuple[Any, ...] | Mapping[str, Any] | None = Along()
    context: Mapping[str, Along] = field(default_factory=dict)
    stem: Callable[..., Tree] | None = None
    pooled: bool = True
    mixed: bool = True

    def __post_init__(self) -> None:
        if self.mask in REAL and bool(self.real) != bool(REAL[self.mask]):
            raise ArgumentError(
                "real",
                expected=f"{REAL[self.mask]} for a mask called {self.mask!r}: readouts and checks read it so",
                got=self.real,
                remedy="Pass the mask under another name, or with its values turned round.",
            )
        for leaf in leaves(self.hidden):
            if not isinstance(leaf, Along | None):
                raise ArgumentTypeError(
                    "hidden",
                    expected="an Along or None, or a tuple or dict of them like the hidden state",
                    got=repr(leaf),
                    remedy="Pass ponder.parts.padding.Along() for a part with a length, and None for one without.",
                )

    def of_inputs(self, tensor: Tensor) -> Along | None:
        """The lengths of a tensor of the inputs, or None."""
        return self.inputs if tensor.dim() > 1 else None

    def lengths_of_inputs(self, inputs: Tree) -> Lengths:
        """What tells the lengths of each tensor of the inputs; in a dict, a mask among them is the mask that it is."""
        if not isinstance(inputs, Mapping):
            return self.of_inputs
        along = {name: self.of_context(name) for name in inputs}
        return {name: self.of_inputs if named is None else with_lengths(named) for name, named in along.items()}

    def of_hidden(self, tensor: Tensor) -> Along | None:
        """The lengths of a tensor of the hidden state, or None, where nothing is said of its parts."""
        return self.hidden if isinstance(self.hidden, Along) and tensor.dim() > 2 else None

    @property
    def lengths_of_hidden(self) -> Lengths:
        """What tells the lengths of each tensor of a hidden state: a function, or functions in a tree like it."""
        parts = isinstance(self.hidden, tuple | list | Mapping)
        return map_leaves(with_lengths, self.hidden) if parts else self.of_hidden

    def of_state(self, hidden: Tree, length: int | None = None) -> list[tuple[Tensor, Along | None]]:
        """Every tensor of a hidden state, in order, and its lengths, or None.

        Args:
            hidden: The hidden state.
            length: How long the batch's sequences are; where None, as the first tensor of the state that has a length.

        Raises:
            ArgumentError: A tensor is taken for a sequence, and is not as long as the sequences are.
        """
        if isinstance(hidden, Tensor) and isinstance(self.hidden, Along):  # nearly always
            found = [("hidden", hidden, self.of_hidden(hidden))]
        else:
            found = lengths_in(hidden, self.lengths_of_hidden, "hidden")
        for path, tensor, along in found:
            for dim in () if along is None else along.dims:
                length = tensor.shape[dim] if length is None else length
                if tensor.shape[dim] != length:
                    raise ArgumentError(
                        path,
                        expected=f"{length} positions in dimension {dim}, as the batch's sequences have",
                        got=f"shape {tuple(tensor.shape)}",
                        remedy=f"Let the stem hand the steps the mask of its own sequences, (hidden, {{{self.mask!r}: "
                        "mask}), or say that the state has no length: ponder.Padding(hidden=None)."
                        if isinstance(hidden, Tensor)
                        else "Say which parts of the state have a length: ponder.Padding(hidden=(Along(), None)), say, "
                        "where the second has none.",
                    )
        return [(tensor, along) for _, tensor, along in found]

    def of_context(self, name: str) -> Along | None:
        """The lengths of a context value, or None."""
        along = self.context.get(name)
        if along is None and name == self.mask:
            return Along((1,), fill=not self.real)
        return along

    def lengths(self, context: Mapping[str, Any]) -> Tensor | None:
        """The last real position of every row, 1-based, `(batch,)` on the host; None where there is no mask."""
        mask = context.get(self.mask)
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            return None
        real = (mask != 0) == bool(self.real)
        return (real.long() * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1).cpu()

    def lengths_of_stem(self, steps: Mapping[str, Any], given: Mapping[str, Any]) -> Tensor | None:
        """As `lengths`, by the mask that a stem hands to the steps; None where it hands on the one that it was given.

        A stem may put tokens in front, or leave some out. Where its sequences are as long as those that it was given,
        no row is taken to be shorter than it was.

        Args:
            steps: The context of the steps, from the stem.
            given: The context that the stem was called with.
        """
        if steps.get(self.mask) is given.get(self.mask):
            return None
        own = self.lengths(steps)
        lengths = self.lengths(given) if self.width(steps) == self.width(given) else None
        return own if own is None else own.clamp(min=1) if lengths is None else own.maximum(lengths)

    def can_be_cut(self, hidden: Tree, steps: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
        """Whether the lengths that are known are those of a state: not where a stem made it of other lengths.

        Of such a state the mask that the stem was given tells nothing; one of its own, handed to the steps, does.

        Args:
            hidden: The hidden state, from the stem.
            steps: The context of the steps, from the stem.
            given: The context that the stem was called with.
        """
        if self.width(steps) is not None:  # `trim` compares
            return True
        there = (tensor.shape[along.dims[0]] for tensor, along in self.of_state(hidden) if along and along.dims)
        return next(there, None) in (None, self.width(given))

    def width(self, context: Mapping[str, Any]) -> int | None:
        """How many positions the mask has; None where there is no mask."""
        mask = context.get(self.mask)
        return mask.shape[1] if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def positions(self, context: Mapping[str, Any]) -> Tensor | None:
        """Which positions are no padding, `(batch, length)` bool; None where there is no mask."""
        mask = context.get(self.mask)
        return (mask != 0) == bool(self.real) if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def trim(self, hidden: Tree, context: Mapping[str, Any], length: int) -> tuple[Tree, dict[str, Any]]:
        """Hidden states and the steps' context up to `length`: views, nothing is copied."""
        mask = context.get(self.mask)
        width = mask.shape[1] if isinstance(mask, Tensor) and mask.dim() == 2 else None  # once a step: no call more
        state = self.of_state(hidden, width)
        narrow = iter([tensor if along is None else along.narrow(tensor, length) for tensor, along in state])
        hidden = next(narrow) if isinstance(hidden, Tensor) else map_tensors(lambda _: next(narrow), hidden)
        return hidden, {name: _narrow(value, self.of_context(name), length) for name, value in context.items()}


def check_masks(context: Mapping[str, Any], padding: Padding | None = None) -> None:
    """Refuse rows without one real position: their attention is undefined, and their mean is no answer.

    That is so by the masks that PyTorch and Transformers know, and by the one that `padding` names. A float
    `attention_mask` of other numbers than 0 and 1 is refused too: it says something else than what positions are real.
    Not in a graph that is being compiled or exported, which cannot look.
    """
    if torch.compiler.is_compiling():
        return
    known = REAL
    if padding is not None and padding.mask not in REAL:
        known = {**REAL, padding.mask: bool(padding.real)}
    for name, real in known.items():
        mask = context.get(name)
        plain = isinstance(mask, list | tuple) and not any(isinstance(each, Tensor) for each in mask)
        if plain or type(mask).__module__ == "numpy":
            raise ArgumentTypeError(
                name,
                expected="a tensor, (batch, length)",
                got=type(mask).__name__,
                remedy=f"Pass {name}=torch.as_tensor({name}); a tokenizer gives tensors with return_tensors='pt'.",
            )
        if isinstance(mask, Tensor) and mask.dim() == 2:
            if real and mask.is_floating_point() and not bool(((mask == 0) | (mask == 1)).all()):
                raise ArgumentError(
                    name,
                    expected="1 where a position is real and 0 where it is padding, (batch, length)",
                    got=mask,
                    remedy="Pass masks that are added to scores with four dimensions, (batch, 1, length, length).",
                )
            filled = ((mask != 0) == real).any(1)
            if not bool(filled.all()):
                raise ArgumentError(
                    name,
                    expected="at least one real position in every row",
                    got=f"none in rows {(filled == 0).nonzero().flatten().tolist()}",
                    remedy="Drop empty examples before the model, or answer them yourself.",
                )


def unknown_mask(context: Mapping[str, Any], shape: torch.Size) -> str | None:
    """The name of what looks like a mask of positions, and is called as none that is known here; None without one.

    Args:
        context: What a model is called with besides the inputs.
        shape: Rows and length of the features.
    """
    if not REAL.keys().isdisjoint(context):
        return None
    for name, value in context.items():
        named = ("mask" in name or "pad" in name) and not name.startswith("global")  # which marks positions to attend
        if named and isinstance(value, Tensor) and value.shape == shape and not value.is_floating_point():
            return name
    return None


def real_positions(context: Mapping[str, Any]) -> Tensor | None:
    """Which positions are not padding, `(batch, length)` bool, by the mask of a call's context; None without one."""
    for name, real in REAL.items():
        mask = context.get(name)
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return (mask != 0) == real
    return None


def named_in(inputs: Tree, context: Mapping[str, Any]) -> Mapping[str, Any]:
    """All that a call names: its context, and its inputs, where these are a dict.

    Example:
        >>> sorted(named_in({"ids": [5], "attention_mask": [1]}, {"scale": 2.0}))
        ['attention_mask', 'ids', 'scale']
    """
    return {**context, **inputs} if isinstance(inputs, Mapping) else context


def lengths_in(tree: Tree, lengths: Lengths, path: str) -> list[tuple[str, Tensor, Along | None]]:
    """Every tensor of a tree with its place, and its lengths, or None.

    Raises:
        ArgumentError: The lengths are named for other parts than the tree has.
    """
    if callable(lengths):
        return [(place, tensor, lengths(tensor)) for place, tensor in tensors(tree, path)]
    there, named = _parts(tree), _parts(lengths) or {}
    if there is None or not there.keys() <= named.keys():
        raise ArgumentError(
            "padding.hidden",
            expected=f"an Along or None for {path}" + ("" if there is None else f", or for each part, {list(there)}"),
            got=f"parts {list(named)}",
            remedy="Write a tuple or dict like the hidden state.",
        )
    parts = [(part, named[name], f"{path}[{name!r}]") for name, part in there.items()]
    return [found for part in parts for found in lengths_in(*part)]


def _parts(tree: Tree) -> Mapping[Any, Any] | None:
    if isinstance(tree, Mapping):
        return tree
    return dict(enumerate(tree)) if isinstance(tree, tuple | list) else None


def _narrow(value: Any, along: Along | None, length: int) -> Any:
    if along is None:
        return value
    if isinstance(value, Shared):
        return Shared(map_tensors(lambda tensor: along.narrow(tensor, length), value.value))
    return map_tensors(lambda tensor: along.narrow(tensor, length), value)
