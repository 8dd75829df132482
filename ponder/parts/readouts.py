"""Readouts: from a hidden state to the features that heads read.

A readout is any callable `readout(hidden, **context) -> features`; it is given those context values that its
signature names (all of them where it takes `**context`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from ponder._utils.trees import Tree
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.callables import FunctionModule, as_module
from ponder.parts.padding import REAL, Padding, real_positions

__all__ = ["Pooled", "Readout", "first_token", "identity", "last", "mean"]

Readout = Callable[..., Tensor]


def identity(hidden: Tensor) -> Tensor:
    """The hidden state itself, for 2-D states and for an answer per token.

    Example:
        >>> readouts.identity(torch.ones(1, 2))
        tensor([[1., 1.]])
    """
    return hidden


def first_token(hidden: Tensor) -> Tensor:
    """The state of the first position: `(batch, length, width)` → `(batch, width)`.

    Example:
        >>> readouts.first_token(torch.arange(6.0).view(1, 3, 2))
        tensor([[0., 1.]])
    """
    return hidden[:, 0]


def mean(hidden: Tensor, attention_mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None) -> Tensor:
    """The mean over the positions that are not padding: `(batch, length, width)` → `(batch, width)`.

    Args:
        hidden: States.
        attention_mask: `(batch, length)`, 1 or True at real positions, where the context has one.
        src_key_padding_mask: `(batch, length)`, True at padding (PyTorch's own convention).

    Example:
        >>> states = torch.arange(6.0).view(1, 3, 2)
        >>> readouts.mean(states, attention_mask=torch.tensor([[1, 1, 0]]))
        tensor([[1., 2.]])
    """
    real = _real_positions(attention_mask, src_key_padding_mask)
    if real is None:
        return reduce(hidden, "batch length width -> batch width", "mean")
    weights = rearrange(real.to(hidden.dtype), "batch length -> batch length 1")
    fine = torch.promote_types(hidden.dtype, torch.float32)
    total = (hidden * weights).sum(1, dtype=fine)  # a sum over a long text overflows in half precision
    return (total / weights.float().sum(1).clamp(min=1)).to(hidden.dtype)


def last(hidden: Tensor, attention_mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None) -> Tensor:
    """The state of the last position that is not padding; arguments as for `mean`.

    Example:
        >>> states = torch.arange(6.0).view(1, 3, 2)
        >>> readouts.last(states, attention_mask=torch.tensor([[1, 1, 0]]))
        tensor([[2., 3.]])
    """
    real = _real_positions(attention_mask, src_key_padding_mask)
    if real is None:
        return hidden[:, -1]
    position = (real.long() * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), position]


class Pooled(nn.Module):
    """Features with positions, pooled to one vector a row; `forward` is a readout.

    Args:
        readout: Hidden state to features with positions; None is the hidden state itself.
        pool: `mean`, `last` or `first_token`.
        padding: Which mask of the context says where padding is; ``attention_mask`` or ``src_key_padding_mask`` where
            None, if one is there.

    Example:
        >>> tokens: ponder.readouts.Readout = ponder.readouts.identity  # features (batch, length, width)
        >>> pooled = ponder.readouts.Pooled(tokens, ponder.readouts.mean)
        >>> pooled(torch.randn(2, 3, 8), attention_mask=torch.tensor([[1, 1, 1], [1, 0, 0]])).shape
        torch.Size([2, 8])
    """

    def __init__(self, readout: Readout | None, pool: Readout, padding: Padding | None = None) -> None:
        super().__init__()
        self.readout = ReadoutCall(identity if readout is None else readout)
        self.pool = pool
        self.padding = padding

    @property
    def mask(self) -> str | None:
        """The name of the mask by which it leaves padding out; None where it reads none."""
        if self.pool is first_token:
            return None
        return "attention_mask" if self.padding is None else self.padding.mask

    def forward(self, hidden: Tree, **context: Any) -> Tensor:
        """`(batch, length, …)` → `(batch, width)`."""
        features = self.readout(hidden, self.readout.reads(context))
        if self.pool is first_token:
            return first_token(features)
        real = real_positions(context) if self.padding is None else self.padding.positions(context)
        pooled: Tensor = self.pool(features, attention_mask=real)
        return pooled


class ReadoutCall(nn.Module):
    """A readout that is given exactly the context it names, and whose features are checked.

    Args:
        readout: The user's readout; None is the identity for 2-D hidden states.
    """

    def __init__(self, readout: Readout | None) -> None:
        super().__init__()
        self.readout = as_module("readout", _two_dimensional if readout is None else readout)
        parameters = _parameters(self.readout.fn if isinstance(self.readout, FunctionModule) else self.readout.forward)
        self._names = {p.name for p in parameters[1:] if p.kind is not p.VAR_KEYWORD}
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if isinstance(self.readout, Pooled) and self.readout.mask is not None:
            self._names.add(self.readout.mask)

    def forward(self, hidden: Tree, given: Mapping[str, Any]) -> Tensor:
        """Read the features of `hidden`, batch first.

        Args:
            hidden: The hidden state.
            given: What `reads` gave of the context, without the mark of shared values.
        """
        readout = self.readout
        features = readout.fn(hidden, **given) if isinstance(readout, FunctionModule) else readout(hidden, **given)
        if not isinstance(features, Tensor):
            raise ArgumentTypeError(
                "readout",
                expected="one tensor of features, batch first",
                got=type(features).__name__,
                remedy="Return one tensor; concatenate where there are several.",
            )
        if isinstance(hidden, Tensor) and features.shape[:1] != hidden.shape[:1]:
            raise ArgumentError(
                "readout",
                expected=f"features of each of the {hidden.shape[0]} rows of the hidden state, which leave one by one",
                got=f"shape {tuple(features.shape)}",
                remedy="Give the hidden state a row for each answer: graphs padded to one size, say.",
            )
        return features

    @property
    def known_name(self) -> str | None:
        """By what a readout of this file is known again in another process; None of a user's own."""
        if isinstance(self.readout, Pooled):
            within, pool = self.readout.readout.known_name, _name_of(self.readout.pool)
            return pool if within == identity.__name__ else f"{pool} of {within}" if within and pool else None
        return _name_of(self.readout.fn) if isinstance(self.readout, FunctionModule) else None

    @property
    def is_known(self) -> bool:
        """Whether it is one of this file, which reads a mask of positions `(batch, length)` and no other."""
        return isinstance(self.readout, Pooled) or self.known_name is not None

    @property
    def leaves_out_padding(self) -> bool:
        """Whether the readout reads a mask of padding from the context."""
        pools = isinstance(self.readout, Pooled) and self.readout.pool is not first_token
        return pools or not self._names.isdisjoint(REAL)

    def names(self, name: str) -> bool:
        """Whether the readout spells out that it reads a value of the context of this name."""
        return name in self._names

    def reads(self, context: Mapping[str, Any]) -> Mapping[str, Any]:
        """The part of `context` that the readout is given."""
        return context if self._takes_all else {k: v for k, v in context.items() if k in self._names}


def told(
    readout: ReadoutCall, reads: Mapping[str, Any], context: Mapping[str, Any], padding: Padding | None
) -> Mapping[str, Any]:
    """What a readout is given: what it reads, and a mask with a name of its own as `attention_mask`, which it knows."""
    if padding is None or padding.mask in REAL or readout.names(padding.mask) or "attention_mask" in reads:
        return reads
    real = padding.positions(context) if readout.names("attention_mask") else None
    return reads if real is None else {**reads, "attention_mask": real}


def _parameters(readout: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(readout).parameters.values())
    except ValueError:  # a built-in function without a signature: it takes the hidden state alone
        return []


def _two_dimensional(hidden: Tree) -> Tensor:
    if isinstance(hidden, Tensor) and hidden.dim() == 2:
        return hidden
    shape = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
    raise ArgumentError(
        "readout",
        expected="a readout, since the hidden state is not (batch, width)",
        got=f"readout=None with a hidden state of {shape}",
        remedy="Pass readout=ponder.readouts.first_token, mean, last or identity, or a function hidden -> features.",
    )


def _name_of(function: object) -> str | None:
    if function is _two_dimensional:
        return identity.__name__
    return next((known.__name__ for known in (identity, first_token, mean, last) if known is function), None)


def _real_positions(attention_mask: Tensor | None, padding_mask: Tensor | None) -> Tensor | None:
    if attention_mask is not None:
        if attention_mask.dim() != 2:
            raise ArgumentError(
                "attention_mask",
                expected="a mask of the positions, (batch, length), by which a readout leaves padding out",
                got=f"shape {tuple(attention_mask.shape)}",
                remedy="Hand the steps a mask of pairs of positions under another name: (hidden, {'attention_mask': "
                "mask, 'pairs': pairs}), say.",
            )
        return attention_mask != 0
    return None if padding_mask is None else ~padding_mask.bool()
