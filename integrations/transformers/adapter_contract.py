"""`Adapter`: the contract for reading a Hugging Face encoder as stem, steps and readouts.

An adapter calls the modules of its encoder, and owns none of them; `AdapterStem` is the module that
registers them in a `PonderWrapper`. There are two kinds: those written for a family
(`ponder.integrations.transformers.adapters`), and the one that captures any encoder
(`ponder.integrations.transformers.captured_adapter`).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ponder._utils.trees import Tree, first_tensor
from ponder.model import readouts
from ponder.model.padding import Padding
from ponder.model.steps import Context, ContextDict, Steps

__all__ = ["READOUTS", "Adapter", "AdapterStem", "as_long", "states_of"]

READOUTS: Mapping[str, Callable[..., Tensor]] = {
    "mean": readouts.mean,
    "first_token": readouts.first_token,
    "last_token": readouts.last_token,
    "tokens": readouts.identity,
}
"""How features are read from `last_hidden_state`; ``"pooler"`` is the pooler of the encoder."""


class Adapter(ABC):
    """An encoder as the parts of a `PonderWrapper`.

    It keeps its modules and weights; an adapter only calls them.

    Args:
        encoder: The bare encoder (`BertModel`, `ViTModel`, …).

    Example:
        >>> from ponder.integrations.transformers.adapters import adapter_for
        >>> adapter = adapter_for(encoder)
        >>> hidden, context = adapter.stem(**batch)
        >>> hidden.shape, adapter.steps().num_steps
        (torch.Size([5, 7, 16]), 4)
        >>> adapter.features("tokens", hidden, context).shape
        torch.Size([5, 7, 16])
    """

    encoder: Any
    """The encoder; its parts have other names in each family, so that no type describes them."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        self.encoder = encoder

    @abstractmethod
    def stem(self, *args: Any, **kwargs: Any) -> tuple[Tree, ContextDict]:
        """Return h_0 and the context of the steps, from the encoder's arguments.

        The context has ``token_mask``, `(batch, length)` and 1 at real positions, or None: readouts
        take it.
        """

    @abstractmethod
    def steps(self) -> Steps:
        """Return the layers as steps."""

    @abstractmethod
    def padding(self) -> Padding | None:
        """Return the lengths of inputs and states; None if batches do not get narrower."""

    @abstractmethod
    def has_readout(self, name: str) -> bool:
        """Return whether the encoder has a readout; see `features`."""

    @abstractmethod
    def output(self, field: str, hidden: Tree, context: Context) -> Tensor:
        """Return `last_hidden_state` or `pooler_output`, as if the encoder ended with `hidden`."""

    def features(self, name: str, hidden: Tree, context: Context) -> Tensor:
        """Return the features of a hidden state: ``"pooler"``, or one of `READOUTS`."""
        if name == "pooler":
            return self.output("pooler_output", hidden, context)
        tokens = self.output("last_hidden_state", hidden, context)
        read = READOUTS[name]
        if tokens.dim() == 4:  # a map of features, (batch, width, height, width of the map)
            return tokens.mean((2, 3))
        if name in ("first_token", "tokens"):  # they need no mask
            return read(tokens)
        mask = as_long(context.get("token_mask"), tokens.shape[1])
        return read(tokens, attention_mask=mask)

    def readout(self, name: str) -> Callable[..., Tensor]:
        """Return `features` as a readout."""
        return partial(self._read, name)

    def _read(self, name: str, hidden: Tree, **context: Any) -> Tensor:
        return self.features(name, hidden, context)

    def width(self, name: str) -> int:
        """Return the size of the features of a readout."""
        return int(self.encoder.config.hidden_size)

    @property
    def inputs(self) -> frozenset[str]:
        """Names of the parts of an encoding that the stem reads."""
        return frozenset(inspect.signature(self.stem).parameters)

    @property
    def required(self) -> frozenset[str]:
        """Names of inputs, except the main one, without which answers would be wrong."""
        return frozenset()


class AdapterStem(nn.Module):
    """The stem of an adapter as a module, so that a `PonderWrapper` registers the encoder.

    Args:
        adapter: The adapter.
        whole: The model that the encoder is a part of, or the encoder itself.
    """

    def __init__(self, adapter: Adapter, whole: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = whole
        self.adapter = adapter

    def forward(self, inputs: Tree, **context: Any) -> tuple[Tree, ContextDict]:
        """See `Adapter.stem`."""
        return self.adapter.stem(inputs, **context)


def states_of(hidden: Tree) -> Tensor:
    """Return the hidden state of a step's state, which may have further parts."""
    if isinstance(hidden, dict):
        states: Tensor = hidden["hidden"]
        return states
    return first_tensor(hidden)


def as_long(mask: Tensor | None, length: int) -> Tensor | None:
    """Return a mask resized to `length`: audio encoders have fewer tokens than samples."""
    if mask is None or mask.shape[1] == length:
        return mask
    places = torch.arange(length, device=mask.device) * mask.shape[1] // length
    return mask[:, places]
