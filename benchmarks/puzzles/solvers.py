"""Two solvers that apply one step again and again and read the problem again at every step.

`recurrent` is a convolutional network with recall (Bansal et al. 2022, arXiv 2202.05826): h_n = F([h_{n−1}, x]).
`recursive` is a small transformer whose state is a pair, an answer y and a latent z (TRM: Jolicoeur-Martineau 2025,
arXiv 2510.04871): z_n = G(x + y_{n−1} + z_{n−1}), y_n = G(y_{n−1} + z_n). Both are parts of a `ponder.PonderWrapper`:
what is read again travels in the context, row by row, so that it goes along when rows leave.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ponder.errors import ArgumentError

__all__ = ["ConvHead", "ConvStem", "ConvStep", "PooledLambda", "RecursiveStem", "RecursiveStep", "answer_state"]

_CONVOLUTION = {1: nn.Conv1d, 2: nn.Conv2d}


class ConvStem(nn.Module):
    """Inputs `(batch, channels, …)` to the first state, and the inputs as what every step reads.

    Args:
        channels: Channels of the inputs.
        width: Width of the state.
        dims: Spatial dimensions, 1 or 2.
    """

    def __init__(self, channels: int, width: int, dims: int) -> None:
        super().__init__()
        self.channels, self.dims = channels, dims
        self.layer = _convolution(channels, width, dims)

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Mapping[str, Any]]:
        """The state `(batch, width, …)` and the context; the mask, `(batch, positions)`, is 0 beyond a problem's end.

        By its name policies find it too: positions beyond the end need not be sure, or at rest.
        """
        if inputs.dim() != self.dims + 2 or inputs.shape[1] != self.channels:
            raise ArgumentError(
                "inputs",
                expected=f"(batch, {self.channels}, {', '.join(['size'] * self.dims)})",
                got=f"shape {tuple(inputs.shape)}",
                remedy="Give the solver problems of the puzzle that it was built for.",
            )
        context, inside = {"inputs": inputs}, None
        if attention_mask is not None:
            inside = attention_mask.to(inputs.dtype).reshape(len(inputs), 1, *inputs.shape[2:])
            context["inside"] = inside
        return _within(F.relu(self.layer(inputs)), inside), context


class ConvStep(nn.Module):
    """One step: recall, and two residual blocks of two convolutions each.

    Args:
        channels: Channels of the inputs, which are read again.
        width: Width of the state.
        dims: Spatial dimensions, 1 or 2.
    """

    def __init__(self, channels: int, width: int, dims: int) -> None:
        super().__init__()
        self.recall = _convolution(width + channels, width, dims)
        self.blocks = nn.ModuleList(_convolution(width, width, dims) for _ in range(4))

    def forward(self, hidden: Tensor, inputs: Tensor, inside: Tensor | None = None) -> Tensor:
        """The next state, of the same shape."""
        hidden = _within(self.recall(torch.cat([hidden, inputs], dim=1)), inside)
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            inner = _within(F.relu(first(hidden)), inside)
            hidden = _within(F.relu(hidden + second(inner)), inside)
        return hidden


class ConvHead(nn.Module):
    """The class of every position: `(batch, width, …)` → `(batch, positions, classes)`.

    One linear layer, since a rule that looks at the answers calls it after every step.

    Args:
        width: Width of the state.
        classes: Number of classes of an answer.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits; each position alone."""
        logits: Tensor = self.layer(features.flatten(2).transpose(1, 2))
        return logits


class RecursiveStem(nn.Module):
    """Digits `(batch, cells)` to the pair (y, z) of zeros' learnt stand-ins, and the embedded problem as context.

    Args:
        side: Cells a side; digits run from 1 to it, and 0 is empty.
        width: Width of the state.
    """

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.digits = nn.Embedding(side + 1, width)
        self.rows, self.columns, self.boxes = (nn.Embedding(side, width) for _ in range(3))
        self.answer = nn.Parameter(torch.randn(width) * 0.1)
        self.latent = nn.Parameter(torch.randn(width) * 0.1)
        cells, box = torch.arange(side * side), round(side**0.5)
        row, column = cells // side, cells % side
        self.register_buffer("places", torch.stack([row, column, row // box * box + column // box]), persistent=False)
        self.places: Tensor

    def forward(self, inputs: Tensor) -> tuple[tuple[Tensor, Tensor], Mapping[str, Any]]:
        """((y, z), context)."""
        if inputs.dim() != 2 or inputs.shape[1] != self.side**2 or inputs.is_floating_point():
            raise ArgumentError(
                "inputs",
                expected=f"digits 0 to {self.side}, integers of shape (batch, {self.side**2})",
                got=f"{inputs.dtype} of shape {tuple(inputs.shape)}",
                remedy=f"This solver was built for {self.side} × {self.side} cells; build another for another size.",
            )
        row, column, box = self.places
        problem = self.digits(inputs) + self.rows(row) + self.columns(column) + self.boxes(box)
        return (self.answer.expand_as(problem), self.latent.expand_as(problem)), {"problem": problem}


class RecursiveStep(nn.Module):
    """One step on (y, z): the latent is worked on `latent_updates` times, then the answer once, by the same block.

    Args:
        width: Width of the state.
        heads: Heads of the attention.
        layers: Transformer layers of the block.
        latent_updates: How often z is updated in a step.
    """

    def __init__(self, width: int, heads: int = 4, layers: int = 1, latent_updates: int = 2) -> None:
        super().__init__()
        self.latent_updates = latent_updates
        self.block = nn.Sequential(*(_Layer(width, heads) for _ in range(layers)))

    def forward(self, hidden: tuple[Tensor, Tensor], problem: Tensor) -> tuple[Tensor, Tensor]:
        """The next pair."""
        answer, latent = hidden
        for _ in range(self.latent_updates):
            latent = self.block(problem + answer + latent)
        return self.block(answer + latent), latent


class _Layer(nn.Module):
    """Attention over all cells and a feed-forward part, each followed by the norm of its sum (as in TRM)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))

    def forward(self, states: Tensor) -> Tensor:
        pattern = "batch cells (three heads width) -> three batch heads cells width"
        query, key, value = rearrange(self.qkv(states), pattern, three=3, heads=self.heads)
        seen = F.scaled_dot_product_attention(query, key, value)
        states = self.norms[0](
            states + self.out(rearrange(seen, "batch heads cells width -> batch cells (heads width)"))
        )
        after: Tensor = self.norms[1](states + self.down(F.silu(self.up(states))))
        return after


class PooledLambda(nn.Module):
    """The hazard of a step from features of all positions: their mean and maximum, and one linear layer.

    Args:
        width: Width of the features.
        channels_first: Whether features are `(batch, width, …)`, as a convolution's, or `(batch, positions, width)`.
        start: The hazard that a new head gives, in (0, 1).
    """

    def __init__(self, width: int, *, channels_first: bool, start: float = 0.05) -> None:
        super().__init__()
        self.channels_first = channels_first
        self.layer = nn.Linear(2 * width, 1)
        nn.init.constant_(self.layer.bias, float(torch.tensor(start).logit()))

    def forward(self, features: Tensor) -> Tensor:
        """Hazard logits, `(batch,)`."""
        positions = features.flatten(2) if self.channels_first else features.transpose(1, 2)
        logits: Tensor = self.layer(torch.cat([positions.mean(-1), positions.amax(-1)], dim=-1)).squeeze(-1)
        return logits


def answer_state(hidden: tuple[Tensor, Tensor]) -> Tensor:
    """The readout of a pair (y, z): y."""
    return hidden[0]


def _convolution(inputs: int, outputs: int, dims: int) -> nn.Module:
    return _CONVOLUTION[dims](inputs, outputs, 3, padding=1, bias=False)


def _within(hidden: Tensor, inside: Tensor | None) -> Tensor:
    """Zero beyond a problem's end, as the padding of a convolution that ends there: sizes can share a batch."""
    return hidden if inside is None else hidden * inside
