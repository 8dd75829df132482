"""Modules with a list of layers, written as people write them, each with an example of what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ponder.policies import ExitPolicy, PolicyBatch, StepView

WIDTH, LENGTH, ROWS, LAYERS = 8, 6, 4, 3
LENGTHS = torch.tensor([LENGTH, 4, 5, 2])
REAL = torch.arange(LENGTH) < LENGTHS[:, None]


class Block(nn.Module):
    """A pre-norm block of attention and a feed-forward part, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.forward_part = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, WIDTH))

    def forward(self, hidden: Tensor, hide: Tensor | None = None) -> Tensor:
        normed = self.norm1(hidden)
        hidden = hidden + self.attention(normed, normed, normed, key_padding_mask=hide, need_weights=False)[0]
        return hidden + self.forward_part(self.norm2(hidden))


class ImageClassifier(nn.Module):
    """As timm writes them: a Sequential of blocks, a class token, and an end with code of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.patches(images).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.class_token.expand(len(hidden), -1, -1), hidden], 1)
        return self.head(self.norm(self.blocks(hidden))[:, 0])


class TextEncoder(nn.Module):
    """Token ids and a mask in, every token out; positions and the layers' mask are made by code of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(30, WIDTH), nn.Embedding(LENGTH + 2, WIDTH)
        self.layers = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        hide = None if attention_mask is None else attention_mask == 0
        for layer in self.layers:
            hidden = layer(hidden, hide)
        return {"tokens": self.norm(hidden)}


class Biased(nn.Module):
    """A layer that is given a bias by the one before, and makes it where it is the first (T5)."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first, self.linear = first, nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if bias is None:
            bias = hidden.mean(2, keepdim=True)  # of the first layer's input, for all the others
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


class CodeBetween(nn.Module):
    """Code of the module's own between its layers, which reads nothing but the hidden state and the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(LAYERS)])

    def forward(self, hidden: Tensor) -> Tensor:
        entered = hidden = self.enter(hidden)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            hidden = norm(torch.tanh(hidden) + 0.1 * entered)
            hidden = layer(hidden)
        return hidden.relu()


class SideBySide(nn.Module):
    """No module is a layer: lists side by side, and a write into the state where a layer ends (XLM)."""

    def __init__(self) -> None:
        super().__init__()
        self.mixers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
        self.wide = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)) for _ in range(LAYERS)])
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(LAYERS)])

    def forward(self, hidden: Tensor) -> Tensor:
        for mixer, wide, norm in zip(self.mixers, self.wide, self.norms, strict=True):
            hidden = hidden + mixer(hidden)
            hidden = norm(hidden + wide(hidden))
            hidden *= 2.0
        return hidden


class LengthFirst(nn.Module):
    """Layers whose hidden state has the length first (XLNet), and a table that all rows share."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(WIDTH, 2, 16) for _ in range(LAYERS)])
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
        table = torch.arange(hidden.shape[1]).float().sin()[None, :, None]
        everywhere = attention_mask[:, None, None, :].bool()
        near = everywhere & (torch.arange(hidden.shape[1])[:, None] - torch.arange(hidden.shape[1])).abs().le(1)
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden, masks={"mask": near if number % 2 else everywhere}, table=(table, 0.5))
        return hidden


class TurningLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, masks: dict[str, Tensor], table: tuple[Tensor, float]) -> Tensor:
        query = (hidden * (1 + table[1] * table[0])).unsqueeze(1)
        mixed = nn.functional.scaled_dot_product_attention(query, query, hidden.unsqueeze(1), masks["mask"])
        return hidden + self.linear(mixed.squeeze(1))


def torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, LAYERS, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)


def states(seed: int = 0) -> Tensor:
    return torch.randn(ROWS, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))


def token_ids(seed: int = 0) -> Tensor:
    return torch.randint(0, 30, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))


def images(seed: int = 0) -> Tensor:
    return torch.randn(ROWS, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


Example = Callable[[int], dict[str, Any]]
MODULES: dict[str, tuple[Callable[[], nn.Module], Example]] = {
    "torch": (torch_encoder, lambda seed: {"src": states(seed)}),
    "torch-masked": (torch_encoder, lambda seed: {"src": states(seed), "src_key_padding_mask": ~REAL}),
    "image-classifier": (ImageClassifier, lambda seed: {"images": images(seed)}),
    "text": (TextEncoder, lambda seed: {"ids": token_ids(seed)}),
    "text-masked": (TextEncoder, lambda seed: {"ids": token_ids(seed), "attention_mask": REAL.long()}),
    "handing-on": (HandingOn, lambda seed: {"hidden": states(seed)}),
    "code-between": (CodeBetween, lambda seed: {"hidden": states(seed)}),
    "side-by-side": (SideBySide, lambda seed: {"hidden": states(seed)}),
    "length-first": (LengthFirst, lambda seed: {"hidden": states(seed)}),
    "folded": (Folded, lambda seed: {"hidden": states(seed)}),
    "rotary": (Rotary, lambda seed: {"hidden": states(seed), "attention_mask": REAL.long()}),
}
NARROWING = ("torch-masked", "text-masked", "rotary")


def make(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """The module called `name` in evaluation mode, and its example."""
    torch.manual_seed(0)
    module, example = MODULES[name]
    return module().eval(), example(0)


def other_example(name: str) -> dict[str, Any]:
    """Another batch for it."""
    return MODULES[name][1](1)


@dataclass(frozen=True)
class ByTurns(ExitPolicy):
    """Row r leaves after 1 + r mod N steps, so that rows of several batches meet in a stream."""

    def init(self, batch: PolicyBatch) -> Any:
        return {"exit": 1 + batch.row_ids % batch.num_steps}

    def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
        return step.index >= state["exit"], state
