"""Readouts: from a hidden state to the features that heads read.

A readout is any callable `readout(hidden, **context) -> features`; it is given those context values that its
signature names (all of them where it takes `**context`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.trees import Tree
from ponder.errors import ArgumentError
from ponder.model.padding import REAL, Padding
from ponder.model.steps import FunctionModule, as_module, parameters_of

__all__ = ["Pooled", "Readout", "ReadoutCall", "first_token", "identity", "last", "last_token", "mean"]

Readout = Callable[..., Tensor]


def identity(hidden: Tensor) -> Tensor:
    """The hidden state itself, for 2-D states and for an answer per token.

    Example:
        >>> ponder.readouts.identity(torch.ones(1, 2))
        tensor([[1., 1.]])
    """
    return hidden


def first_token(hidden: Tensor) -> Tensor:
    """State of the first position: `(batch, length, width)` → `(batch, width)`.

    Example:
        >>> ponder.readouts.first_token(torch.arange(6.0).view(1, 3, 2))
        tensor([[0., 1.]])
    """
    return hidden[:, 0]


def mean(hidden: Tensor, attention_mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None) -> Tensor:
    """Mean over the positions that are not padding: `(batch, length, width)` → `(batch, width)`.

    Args:
        hidden: States.
        attention_mask: `(batch, length)`, 1 or True at real positions, where the context has one.
        src_key_padding_mask: `(batch, length)`, True at padding (PyTorch's own convention).

    Example:
        >>> states = torch.arange(6.0).view(1, 3, 2)
        >>> ponder.readouts.mean(states, attention_mask=torch.tensor([[1, 1, 0]]))
        tensor([[1., 2.]])
    """
    real = _real(attention_mask, src_key_padding_mask)
    if real is None:
        return hidden.mean(1)
    weights = real.to(hidden.dtype).unsqueeze(-1)
    fine = torch.promote_types(hidden.dtype, torch.float32)
    total = (hidden * weights).sum(1, dtype=fine)  # a sum over a long text overflows in half precision
    return (total / weights.to(fine).sum(1).clamp(min=1)).to(hidden.dtype)


def last_token(
    hidden: Tensor, attention_mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None
) -> Tensor:
    """State of the last position that is not padding; arguments as for `mean`.

    Example:
        >>> states = torch.arange(6.0).view(1, 3, 2)
        >>> ponder.readouts.last(states, attention_mask=torch.tensor([[1, 1, 0]]))
        tensor([[2., 3.]])
    """
    real = _real(attention_mask, src_key_padding_mask)
    if real is None:
        return hidden[:, -1]
    position = (real.long() * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), position]


last = last_token


class Pooled(nn.Module):
    """Features with positions, pooled to one vector a row; `forward` is a readout.

    Args:
        readout: Hidden state to features with positions; None is the hidden state itself.
        pool: `mean`, `last` or `first_token`.
        padding: The mask of the context that says where padding is; those of the two known names where None.

    Example:
        >>> pooled = ponder.readouts.Pooled(None, ponder.readouts.mean)  # of features (batch, length, width)
        >>> pooled(torch.randn(2, 3, 8), attention_mask=torch.tensor([[1, 1, 1], [1, 0, 0]])).shape
        torch.Size([2, 8])
    """

    def __init__(self, readout: Readout | None, pool: Readout, padding: Padding | None = None) -> None:
        super().__init__()
        self.readout, self.pool = ReadoutCall(readout or identity), ReadoutCall(pool, padding)

    def forward(self, hidden: Tree, **context: Any) -> Tensor:
        """`(batch, length, …)` → `(batch, width)`."""
        return self.pool(self.readout(hidden, self.readout.reads(context)), self.pool.reads(context))


class ReadoutCall(nn.Module):
    """A readout that is given exactly the context it names.

    Args:
        readout: The user's readout; None is the identity for 2-D hidden states.
        padding: Of a mask with a name of its own, which readouts of this file know as `attention_mask`.
    """

    def __init__(self, readout: Readout | None, padding: Padding | None = None) -> None:
        super().__init__()
        self.readout = as_module("readout", _two_dimensional if readout is None else readout)
        parameters = list(parameters_of(self.readout).values())
        self._names = frozenset(p.name for p in parameters[1:] if p.kind is not p.VAR_KEYWORD)
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = padding is not None and padding.mask not in REAL and padding.mask not in self._names
        self._padding = padding if named and "attention_mask" in self._names else None

    def forward(self, hidden: Tree, given: Mapping[str, Any]) -> Tensor:
        """Return the features of `hidden`, batch first; `given` is what `reads` gave."""
        readout = self.readout.fn if isinstance(self.readout, FunctionModule) else self.readout
        features: Tensor = readout(hidden, **given)
        return features

    def reads(self, context: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the part of `context` that the readout is given."""
        if self._takes_all or not context:
            return context
        reads = {name: value for name, value in context.items() if name in self._names}
        if self._padding is not None and "attention_mask" not in reads:
            reads["attention_mask"] = self._padding.positions(context)
        return reads

    @property
    def known_name(self) -> str | None:
        """Name by which a readout of this file is known in another process; None of a user's own."""
        if isinstance(self.readout, Pooled):
            within, pool = self.readout.readout.known_name, self.readout.pool.known_name
            return pool if within == "identity" else f"{pool} of {within}" if within and pool else None
        function = self.readout.fn if isinstance(self.readout, FunctionModule) else None
        return "identity" if function is _two_dimensional else _NAMES.get(function)


def _two_dimensional(hidden: Tree) -> Tensor:
    if isinstance(hidden, Tensor) and hidden.dim() == 2:
        return hidden
    raise ArgumentError(
        "readout",
        expected="a readout, since the hidden state is not (batch, width)",
        got=f"None, with a state {tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__}",
        remedy="Pass readout=ponder.readouts.first_token, mean, last or identity, or a function hidden -> features.",
    )


def _real(attention_mask: Tensor | None, padding_mask: Tensor | None) -> Tensor | None:
    if attention_mask is not None:
        return attention_mask != 0
    return None if padding_mask is None else ~padding_mask.bool()


_NAMES: dict[Any, str] = {identity: "identity", first_token: "first_token", mean: "mean", last_token: "last"}
