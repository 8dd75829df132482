"""Steps that run some positions of a batch: a reference block, a stack, and known layers.

In a shared step the keys and values of a halted position do not change, so that a step
computes queries, keys, values and the feed-forward network of the running positions alone, and the
others are attended to as they were left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ponder._utils.trees import Tree
from ponder.errors import ArgumentError
from ponder.loops.places import Places, PositionStep
from ponder.model.steps import as_module

__all__ = ["AlbertStep", "Block", "EncoderLayerStep", "Stack", "position_step"]


class Block(nn.Module):
    """A transformer block with the norms in front, as a step: the reference of `PositionStep`.

    Args:
        width: Size of a state.
        heads: Number of heads of attention; a divisor of `width`.
        inner: Size inside the feed-forward network; four times the width if None.
        causal: Whether a position attends to itself and to those before it alone.

    Shape: states `(rows, length, width)` and `attention_mask` `(rows, length)` bool → states
        `(rows, length, width)`.

    Example:
        >>> block = ponder.loops.Block(8, heads=2)
        >>> block(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self, width: int, heads: int, inner: int | None = None, *, causal: bool = False
    ) -> None:
        super().__init__()
        if inner is None:
            inner = 4 * width
        self.heads = heads
        self.causal = causal
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)
        )

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the new states of all positions."""
        normed = self.norm(hidden)
        mask = _over_keys(attention_mask)
        if self.causal:
            order = torch.arange(hidden.shape[1], device=hidden.device)
            mask = _before(order.expand(hidden.shape[:2]), hidden.shape[1], mask)
        hidden = hidden + self.attend(self.query(normed), self.key_value(normed), mask)
        states: Tensor = hidden + self.feed_forward(hidden)
        return states

    def positions(
        self, hidden: Tensor, places: Places, kept: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the new states of the running positions, and the keys and values of all."""
        running = places.take(hidden)
        kept = places.renew(kept, self.keys_and_values, hidden)
        query = places.pad(self.query(self.norm(running)))
        mask = _over_keys(places.visible)
        if self.causal:
            mask = _before(places.pad(places.position), places.length, mask)
        running = running + places.unpad(self.attend(query, kept, mask))
        return running + self.feed_forward(running), kept

    def keys_and_values(self, states: Tensor) -> Tensor:
        """Return keys and values side by side, `(…, 2 · width)`, of states `(…, width)`."""
        key_value: Tensor = self.key_value(self.norm(states))
        return key_value

    def attend(self, query: Tensor, key_value: Tensor, mask: Tensor | None) -> Tensor:
        """Return the values that queries `(rows, some, width)` read.

        The mask is `(rows, 1, some or 1, length)` bool.
        """
        key, value = key_value.chunk(2, dim=-1)
        mixed: Tensor = self.out(attention(query, key, value, self.heads, mask))
        return mixed


class Stack(nn.Module):
    """Several layers as one step, which runs some positions.

    Keys and values of a halted position in every layer are those of the first pass after it halted,
    and are kept from then on. In the layers behind the first this is a choice: if they were
    computed again, they would follow the other positions. With one layer both rules are the same.

    Args:
        layers: Layers that run some positions: `Block`, `AlbertLayer`,
            `nn.TransformerEncoderLayer`,
            or your own.

    Example:
        >>> stack = ponder.loops.Stack([ponder.loops.Block(8, heads=2) for _ in range(2)])
        >>> loop = ponder.loops.Loop(stack, nn.Linear(8, 3), policy=policies.Confidence(0.5)).eval()
        >>> loop.runs_positions, loop(torch.randn(2, 5, 8), max_steps=4).exit_step.shape
        (True, torch.Size([2, 5]))
    """

    def __init__(self, layers: Iterable[Callable[..., object]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(position_step, layers))

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the new states of all positions."""
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=attention_mask)
        return hidden

    def positions(
        self, hidden: Tensor, places: Places, kept: Sequence[Tree] | None
    ) -> tuple[Tensor, list[Tree]]:
        """Return the new states of the running positions, and the kept values of each layer.

        The layers before the last run the positions that halted at the step before, too: the next
        layer needs their keys and values once.
        """
        layers = cast("Sequence[PositionStep]", self.layers)
        if kept is None:
            kept = [None] * len(layers)
        renewed: list[Tree] = []
        changed = places.to_renew
        for layer, kept_before in zip(layers[:-1], kept[:-1], strict=True):
            after, kept_after = layer.positions(hidden, changed, kept_before)
            renewed.append(kept_after)
            hidden = changed.put(hidden, cast(Tensor, after))
        after, kept_after = layers[-1].positions(hidden, places, kept[-1])
        return cast(Tensor, after), [*renewed, kept_after]


class AlbertStep(nn.Module):
    """An `AlbertLayer` of Transformers as a step that runs some positions.

    `ponder.loops.Loop` makes it of a layer by itself.

    Args:
        layer: The layer; its weights are used, not copied.

    Example:
        >>> from transformers.models.albert import modeling_albert
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
        >>> config = modeling_albert.AlbertConfig(**sizes)
        >>> step = AlbertStep(modeling_albert.AlbertLayer(config))
        >>> step(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer  # Transformers' own class, which need not be installed

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the new states of all positions."""
        mask = None
        if attention_mask is not None:
            mask = torch.zeros(attention_mask.shape, dtype=hidden.dtype, device=hidden.device)
            mask.masked_fill_(~attention_mask, torch.finfo(hidden.dtype).min)
            mask = rearrange(mask, "rows keys -> rows 1 1 keys")
        states: Tensor = self.layer(hidden, mask)
        return states

    def positions(
        self, hidden: Tensor, places: Places, kept: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the new states of the running positions, and the keys and values of all."""
        layer = self.layer
        parts = layer.attention
        running = places.take(hidden)
        kept = places.renew(kept, self._keys_and_values, hidden)
        key, value = kept.chunk(2, dim=-1)
        mixed = attention(
            places.pad(parts.query(running)),
            key,
            value,
            parts.num_attention_heads,
            _over_keys(places.visible),
        )
        mixed = parts.LayerNorm(running + parts.dense(places.unpad(mixed)))
        return layer.full_layer_layer_norm(layer.ff_chunk(mixed) + mixed), kept

    def _keys_and_values(self, states: Tensor) -> Tensor:
        parts = self.layer.attention
        return torch.cat([parts.key(states), parts.value(states)], dim=-1)


class EncoderLayerStep(nn.Module):
    """An `nn.TransformerEncoderLayer` as a step that runs some positions.

    Args:
        layer: The layer, with ``batch_first=True``; its weights are used, not copied.

    Raises:
        ArgumentError: The layer takes the positions first.

    Example:
        >>> step = EncoderLayerStep(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
        >>> step(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, layer: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        if not layer.self_attn.batch_first:
            expected = "a layer that takes rows first"
            got = "batch_first=False"
            remedy = "Build it with batch_first=True; the weights are the same."
            raise ArgumentError("step", expected=expected, got=got, remedy=remedy)
        self.layer = layer

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the new states of all positions."""
        hides = None
        if attention_mask is not None:
            hides = ~attention_mask
        states: Tensor = self.layer(hidden, src_key_padding_mask=hides)
        return states

    def positions(
        self, hidden: Tensor, places: Places, kept: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the new states of the running positions, and the keys and values of all."""
        layer = self.layer
        running = places.take(hidden)
        kept = places.renew(kept, self._keys_and_values, hidden)
        if layer.norm_first:
            running = running + self._attend(layer.norm1(running), places, kept)
            return running + self._feed_forward(layer.norm2(running)), kept
        running = layer.norm1(running + self._attend(running, places, kept))
        return layer.norm2(running + self._feed_forward(running)), kept

    def _attend(self, running: Tensor, places: Places, kept: Tensor) -> Tensor:
        parts = self.layer.self_attn
        query = places.pad(self._project(running, 0, 1))
        key, value = kept.chunk(2, dim=-1)
        mixed = attention(query, key, value, parts.num_heads, _over_keys(places.visible))
        states: Tensor = parts.out_proj(places.unpad(mixed))
        return states

    def _feed_forward(self, states: Tensor) -> Tensor:
        inner = self.layer.activation(self.layer.linear1(states))
        after: Tensor = self.layer.linear2(inner)
        return after

    def _keys_and_values(self, states: Tensor) -> Tensor:
        if self.layer.norm_first:
            states = self.layer.norm1(states)
        return self._project(states, 1, 3)

    def _project(self, states: Tensor, first: int, last: int) -> Tensor:
        """Return queries (part 0), keys (1) and values (2) from part `first` up to `last`."""
        parts = self.layer.self_attn
        width = states.shape[-1]
        chosen = slice(first * width, last * width)
        bias: Tensor | None = parts.in_proj_bias
        if bias is not None:
            bias = bias[chosen]
        return F.linear(states, parts.in_proj_weight[chosen], bias)


_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "torch.nn.modules.transformer.TransformerEncoderLayer": EncoderLayerStep,
    "transformers.models.albert.modeling_albert.AlbertLayer": AlbertStep,
}
"""Layers of other libraries, by the path of their class, and the step that runs one."""


def position_step(step: Callable[..., object]) -> nn.Module:
    """Return a step as a module; known layers become steps that run some positions."""
    adapter = _LAYERS.get(f"{type(step).__module__}.{type(step).__qualname__}")
    if adapter is None:
        return as_module("step", step)
    return adapter(step)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Return what queries `(rows, some, width)` read of values `(rows, length, width)`."""
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value)
    )
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)


def _before(position: Tensor, length: int, visible: Tensor | None) -> Tensor:
    """Return the causal mask of queries at `position`, `(rows, some)`, to earlier positions."""
    keys = torch.arange(length, device=position.device)
    before = keys <= rearrange(position, "rows some -> rows 1 some 1")
    if visible is None:
        return before
    return before & visible


def _over_keys(visible: Tensor | None) -> Tensor | None:
    if visible is None:
        return None
    return rearrange(visible, "rows keys -> rows 1 1 keys")
