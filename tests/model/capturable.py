"""Modules with a list of layers, written as people write them, each with an example of what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 8
LENGTH = 6
ROWS = 4
LAYERS = 3
REAL = torch.arange(LENGTH) < torch.tensor([LENGTH, 4, 5, 2])[:, None]


class Block(nn.Module):
    """A pre-norm block of attention and a feed-forward part, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.feed = nn.Sequential(
            nn.Linear(WIDTH, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, WIDTH)
        )

    def forward(self, hidden: Tensor, hide: Tensor | None = None) -> Tensor:
        normed = self.norm1(hidden)
        hidden = (
            hidden
            + self.attention(normed, normed, normed, key_padding_mask=hide, need_weights=False)[0]
        )
        return hidden + self.feed(self.norm2(hidden))


def blocks() -> list[Block]:
    return [Block() for _ in range(LAYERS)]


class ImageClassifier(nn.Module):
    """As timm writes them: a Sequential of blocks, a class token, and an end with code of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.blocks = nn.Sequential(*blocks())
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.patches(images).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.token.expand(len(hidden), -1, -1), hidden], 1)
        return self.head(self.norm(self.blocks(hidden))[:, 0])


class TextEncoder(nn.Module):
    """Token ids and a mask in, every token out; positions and the layers' mask are made by code of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, WIDTH)
        self.positions = nn.Embedding(LENGTH + 2, WIDTH)
        self.layers = nn.ModuleList(blocks())
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        hide = None if attention_mask is None else attention_mask == 0
        for layer in self.layers:
            hidden = layer(hidden, hide)
        return {"tokens": self.norm(hidden)}


class Pooling(TextEncoder):
    """The mean of the tokens that are no padding, by code behind the layers; without a mask, of all."""

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        hidden = super().forward(ids, attention_mask)["tokens"]
        if attention_mask is None:
            return hidden.mean(1)
        weights = attention_mask.unsqueeze(-1).to(hidden)
        return (hidden * weights).sum(1) / weights.sum(1)


class Biased(nn.Module):
    """A layer that is given a bias by the one before, and makes it where it is the first (T5)."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        bias = hidden.mean(2, keepdim=True) if bias is None else bias
        return torch.tanh(self.linear(hidden) + bias), bias


class HandingOn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Biased(first=number == 0) for number in range(LAYERS)])

    def forward(self, hidden: Tensor) -> Tensor:
        bias = None
        for layer in self.layers:
            hidden, bias = layer(hidden, bias)
        return hidden


class LengthFirst(nn.Module):
    """Layers whose hidden state has the length first (XLNet), and a table that all rows share."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.TransformerEncoderLayer(WIDTH, 2, 16) for _ in range(LAYERS)]
        )
        self.table = nn.Parameter(torch.randn(LENGTH, 1, WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden.transpose(0, 1) + self.table
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden.transpose(0, 1)


class Folded(nn.Module):
    """Layers whose rows and positions share a dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])

    def forward(self, hidden: Tensor) -> Tensor:
        rows = len(hidden)
        hidden = hidden.flatten(0, 1)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden.unflatten(0, (rows, -1))


class Rotary(nn.Module):
    """Layers that take a table of the length and different masks by turns (ModernBERT)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([TurningLayer() for _ in range(LAYERS)])

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        places = torch.arange(hidden.shape[1])
        everywhere = attention_mask[:, None, None, :].bool()
        near = everywhere & (places[:, None] - places).abs().le(1)
        for number, layer in enumerate(self.layers):
            masks = {"mask": near if number % 2 else everywhere}
            hidden = layer(hidden, masks=masks, table=(places.float().sin()[None, :, None], 0.5))
        return hidden


class TurningLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(
        self, hidden: Tensor, masks: dict[str, Tensor], table: tuple[Tensor, float]
    ) -> Tensor:
        query = (hidden * (1 + table[1] * table[0])).unsqueeze(1)
        mixed = nn.functional.scaled_dot_product_attention(
            query, query, hidden.unsqueeze(1), masks["mask"]
        )
        return hidden + self.linear(mixed.squeeze(1))


class Late(TextEncoder):
    """A mask that all layers but the first are given."""

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        hidden = self.words(ids)
        hide = None
        for layer in self.layers:
            hidden = layer(hidden, hide)
            hide = None if attention_mask is None else attention_mask == 0
        return hidden


class Looped(nn.Module):
    """One block that runs again and again, in a list that repeats it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.blocks = nn.ModuleList([self.block] * LAYERS)

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


class Noisy(TextEncoder):
    """Dropout of the module's own in front of the layers and behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        hidden = self.drop(self.words(ids))
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(self.drop(hidden))


def torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, LAYERS, norm=nn.LayerNorm(WIDTH))


def sequential() -> nn.Module:
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(LAYERS)]
    return nn.Sequential(nn.Linear(5, WIDTH), *layers, nn.LayerNorm(WIDTH))


def states(seed: int) -> Tensor:
    return torch.randn(ROWS, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))


def token_ids(seed: int) -> Tensor:
    return torch.randint(0, 30, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))


Example = Callable[[int], dict[str, Any]]
MODULES: dict[str, tuple[Callable[[], nn.Module], Example]] = {
    "torch": (torch_encoder, lambda seed: {"src": states(seed)}),
    "torch-masked": (
        torch_encoder,
        lambda seed: {"src": states(seed), "src_key_padding_mask": ~REAL},
    ),
    "sequential": (sequential, lambda seed: {"input": torch.randn(ROWS, 5)}),
    "image-classifier": (ImageClassifier, lambda seed: {"images": torch.randn(ROWS, 3, 8, 8)}),
    "text": (TextEncoder, lambda seed: {"ids": token_ids(seed)}),
    "text-masked": (
        TextEncoder,
        lambda seed: {"ids": token_ids(seed), "attention_mask": REAL.long()},
    ),
    "pooling": (Pooling, lambda seed: {"ids": token_ids(seed)}),
    "pooling-masked": (
        Pooling,
        lambda seed: {"ids": token_ids(seed), "attention_mask": REAL.long()},
    ),
    "handing-on": (HandingOn, lambda seed: {"hidden": states(seed)}),
    "rotary": (Rotary, lambda seed: {"hidden": states(seed), "attention_mask": REAL.long()}),
    "late": (Late, lambda seed: {"ids": token_ids(seed), "attention_mask": REAL.long()}),
    "looped": (Looped, lambda seed: {"hidden": states(seed)}),
    "noisy": (Noisy, lambda seed: {"ids": token_ids(seed)}),
}
PADDED = ("torch-masked", "text-masked", "pooling-masked", "rotary")


def make(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """The module called `name` in evaluation mode, and its example."""
    torch.manual_seed(0)
    module, example = MODULES[name]
    return module().eval(), example(0)
