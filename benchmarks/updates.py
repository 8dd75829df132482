"""Updates of a classifier: AdamW with warm-up and linear decay, and attention for CPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["Updates", "eager_attention"]

_NEW = 10.0  # learning rate of weights that start at random, as a multiple of the encoder's
_WARM_UP = 0.1  # of all updates


class Updates:
    """AdamW for a new head on a pretrained encoder.

    Args:
        model: The model.
        lr: Learning rate of the encoder after a warm-up of a tenth of all updates; it falls to 0
            linearly. That of new weights is ten times as high.
        total: Number of updates.
        new: Words in the names of weights that start at random.
    """

    def __init__(self, model: nn.Module, lr: float, total: int, new: Sequence[str]) -> None:
        pretrained: list[nn.Parameter] = []
        fresh: list[nn.Parameter] = []
        for name, weight in model.named_parameters():
            group = fresh if any(word in name for word in new) else pretrained
            group.append(weight)
        groups = [{"params": pretrained, "lr": lr}, {"params": fresh, "lr": _NEW * lr}]

        def share(done: int) -> float:
            return min((done + 1) / (_WARM_UP * total + 1), (total - done) / total)

        self._model = model
        self._optimiser = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, share)

    def step(self, loss: Tensor) -> None:
        """Update the weights by the gradient of a loss, whose norm is clipped at 1."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad()
        self._schedule.step()


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Train a model with eager attention, and leave it in evaluation mode with its own.

    On a CPU the fused kernel has no dropout, and falls back to slower ones.
    """
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    model.train()
    yield
    model.set_attn_implementation(attention)
    model.eval()
