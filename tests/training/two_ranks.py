"""Trainings that two processes share; each writes what it has at the end into a folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import ponder


def train(recipe: str, batch: int) -> dict[str, torch.Tensor]:
    """Train, and return the weights."""
    torch.manual_seed(0)
    inputs = torch.randn(24, 4)
    labels = torch.arange(24).remainder(2)
    labels[0] = -100  # the ranks have different numbers of labelled rows
    steps = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)]
    model = ponder.PonderWrapper.from_recipe(
        steps, recipe, num_outputs=2, example=inputs[:2], head_dropout=0.0
    )
    loader = DataLoader(list(zip(inputs, labels, strict=True)), batch_size=batch)
    ponder.fit(model, loader, epochs=2, lr=1e-2, head_lr=1e-2, clip=None)
    return dict(model.state_dict())


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = {recipe: train(recipe, 4) for recipe in sys.argv[2:]}
    torch.save(made, Path(sys.argv[1]) / f"rank{os.environ['RANK']}.pt")
