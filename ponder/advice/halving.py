"""A model of half the layers, taught the answers of the whole (Hinton et al. 2015)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ponder.advice.material import Material
from ponder.integrations.transformers.exits import Progress

__all__ = ["teach_half"]

_PASSES = 3
_BATCH = 32


def teach_half(material: Material, progress: Progress) -> PreTrainedModel | None:
    """Return a model of the first half of the layers, taught on the texts that teach.

    Returns:
        The encoder; None if the model has no list of layers, or a single layer.
    """
    encoder = copy.deepcopy(material.model.encoder)
    count: int = encoder.config.num_hidden_layers
    layers = _layers(encoder, count)
    if layers is None or count < 2:
        return None
    del layers[count // 2 :]
    encoder.config.num_hidden_layers = count // 2
    _teach(encoder, material, progress)
    return encoder


def _layers(encoder: nn.Module, count: int) -> nn.ModuleList | None:
    """Return the list of layers, the first of the right length."""
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    return None


def _teach(encoder: PreTrainedModel, material: Material, progress: Progress) -> None:
    """Minimise the KL divergence from the answers of the whole, by three passes of AdamW."""
    whole = material.model
    task = whole.ponder.task
    tokenizer = whole.tokenizer
    assert task is not None
    assert tokenizer is not None  # it is a classifier of texts
    answers = torch.as_tensor(material.taught.outputs[:, -1])
    batches = _batches(len(material.teaching_rows))
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=1e-4, weight_decay=0.01)

    def falling(done: int) -> float:
        """Return the share of the learning rate after some batches, which falls to 0."""
        return 1.0 - done / len(batches)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, falling)
    encoder.requires_grad_(True).train()
    for number, places in enumerate(batches, 1):
        rows: Any = [material.teaching_rows[place] for place in places.tolist()]
        batch = tokenizer.pad(rows, return_tensors="pt")
        inputs = {name: batch[name] for name in batch if name in whole.adapter.inputs}
        logits = encoder(**inputs).logits
        losses = task.distillation_losses(logits, answers[places], 1.0, None)
        losses.mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        progress("half the layers", number, len(batches))
    encoder.train(False)


def _batches(rows: int) -> Sequence[Tensor]:
    """Return the rows of each batch of all passes, in the same random order in every pass."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return list(order.split(_BATCH)) * _PASSES
