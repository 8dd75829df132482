"""A small model of sequences, whose steps count the rows that they are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import ponder

WIDTH = 8
CLASSES = 3
STEPS = 4


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, WIDTH)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return self.embedding(ids), {"attention_mask": attention_mask}


class Step(nn.Module):
    """A layer in which real positions alone speak to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.sizes = list[tuple[int, int]]()

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        self.sizes.append((hidden.shape[0], hidden.shape[1]))
        real = attention_mask.unsqueeze(-1)
        mean = (hidden * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        return hidden + torch.tanh(2.0 * self.linear(hidden + mean))


def build(
    task: str = "classification", shared: bool = False, **options: Any
) -> ponder.PonderWrapper:
    """A model of sequences in evaluation mode."""
    torch.manual_seed(1)
    tokens = task == "token_classification"
    return ponder.PonderWrapper(
        Step() if shared else [Step() for _ in range(STEPS)],
        num_steps=STEPS,
        stem=Stem(),
        readout=(lambda hidden: hidden) if tokens else ponder.readouts.mean,
        head=nn.Linear(WIDTH, CLASSES),
        task=task,
        padding=ponder.Padding(),
        **options,
    ).eval()


def sequences(count: int, seed: int = 0) -> list[Tensor]:
    """Token ids of several lengths."""
    draw = torch.Generator().manual_seed(seed)
    return [
        torch.randint(50, (int(n),), generator=draw)
        for n in torch.randint(2, 12, (count,), generator=draw)
    ]


def sizes_of(model: ponder.PonderWrapper) -> list[tuple[int, int]]:
    """Rows and length of every call of a step since the last look."""
    found = [size for step in model.steps.fns for size in step.sizes]
    for step in model.steps.fns:
        step.sizes.clear()
    return found
