"""Readouts: from a hidden state to the features that heads read.

A readout is any callable `readout(hidden, **context) -> features`. It is called with those context
values that its signature names, or with all of them if it takes `**context`. A readout that names
`attention_mask` gets the positions that are not padding, as booleans, from the mask that the
context has: that of Transformers, of PyTorch, or of the model's `ponder.Padding`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ponder._utils.trees import Tree
from ponder.errors import ArgumentError
from ponder.model.padding import Padding, last_position
from ponder.model.steps import FunctionModule, as_module, parameters_of

__all__ = ["Readout", "ReadoutCall", "first_token", "identity", "last", "last_token", "mean"]

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


def mean(hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Mean over the positions that are not padding: `(batch, length, width)` → `(batch, width)`.

    Args:
        hidden: States.
        attention_mask: `(batch, length)`, 1 or True at real positions; None if all are real.

    Example:
        >>> states = torch.arange(6.0).view(1, 3, 2)
        >>> ponder.readouts.mean(states, attention_mask=torch.tensor([[1, 1, 0]]))
        tensor([[1., 2.]])
    """
    if attention_mask is None:
        return hidden.mean(1)
    real = rearrange(attention_mask != 0, "batch length -> batch length 1")
    # A sum over a long text overflows in half precision.
    precise = torch.promote_types(hidden.dtype, torch.float32)
    total = (hidden * real.to(hidden.dtype)).sum(1, dtype=precise)
    return (total / real.to(precise).sum(1).clamp(min=1)).to(hidden.dtype)


def last_token(hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """State of the last position that is not padding; arguments as for `mean`.

    Example:
        >>> states = torch.arange(6.0).view(1, 3, 2)
        >>> ponder.readouts.last(states, attention_mask=torch.tensor([[1, 1, 0]]))
        tensor([[2., 3.]])
    """
    if attention_mask is None:
        return hidden[:, -1]
    position = last_position(attention_mask != 0).clamp(min=1) - 1
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), position]


last = last_token


class ReadoutCall(nn.Module):
    """A readout that is called with exactly the context values that it names.

    Args:
        readout: The user's readout; None is the identity for 2-D hidden states.
        padding: The name and the meaning of the model's mask.
        states: Another readout, whose features `readout` reads in the place of the hidden state;
            `mean` then pools their positions.

    Example:
        >>> pooled = ponder.readouts.ReadoutCall(ponder.readouts.mean)
        >>> pooled(torch.randn(2, 3, 8), attention_mask=torch.tensor([[1, 1, 1], [1, 0, 0]])).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        readout: Readout | None,
        padding: Padding | None = None,
        states: ReadoutCall | None = None,
    ) -> None:
        super().__init__()
        self.readout = as_module("readout", _two_dimensional if readout is None else readout)
        self.padding = padding or Padding()
        self.states = states
        parameters = list(parameters_of(self.readout).values())
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        # The names of the context values that it takes; None for all.
        self._names = None if takes_all else frozenset(p.name for p in parameters[1:])

    def forward(self, hidden: Tree, **context: Any) -> Tensor:
        """Return the features of `hidden`, batch first."""
        return self.bind(context)(hidden)

    def bind(self, context: Mapping[str, Any]) -> Callable[[Tree], Tensor]:
        """Return the readout of hidden states in this context; masks are read once."""
        readout: Callable[..., Tensor] = self.readout
        if isinstance(self.readout, FunctionModule):
            readout = self.readout.fn
        names = self._names
        taken = {name: value for name, value in context.items() if names is None or name in names}
        if context and names and "attention_mask" in names:
            taken["attention_mask"] = self.padding.positions(context)
        read = readout
        if taken:
            read = partial(readout, **taken)
        if self.states is None:
            return read
        states = self.states.bind(context)
        if states is identity:
            return read
        return lambda hidden: read(states(hidden))


def _two_dimensional(hidden: Tree) -> Tensor:
    if isinstance(hidden, Tensor) and hidden.dim() == 2:
        return hidden
    state = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
    raise ArgumentError(
        "readout",
        expected="a readout, since the hidden state is not (batch, width)",
        got=f"None, with a state {state}",
        remedy="Pass readout=ponder.readouts.first_token, mean, last or identity, or a function "
        "hidden -> features.",
    )
