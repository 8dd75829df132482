"""The best epoch of a stage: its weights, kept aside and brought back."""

from __future__ import annotations

import copy
from math import inf, isnan
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Best"]


class Best:
    """The best epoch so far, and how many came after it without being better."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self.best, self.since, self.epoch = model, -inf, 0, 0
        self._weights: dict[str, Any] = {}
        self._unsaved: dict[str, Tensor] = {}

    def see(self, epoch: int, score: float) -> None:
        """Keep the weights of this epoch where it is the best, or the first; a score that is NaN is the worst."""
        if score > self.best or not self._weights:
            self.best, self.since, self.epoch = -inf if isnan(score) else score, 0, epoch
            state = self._model.state_dict()
            self._weights = {name: _copied(value) for name, value in state.items()}
            self._unsaved = {name: _copied(value) for name, value in self._model.named_buffers() if name not in state}
        else:
            self.since += 1

    def restore(self) -> None:
        """Bring the best epoch back, where one was seen."""
        if not self._weights:
            return
        self._model.load_state_dict(self._weights)
        for name, buffer in self._model.named_buffers():
            kept = self._unsaved.get(name, buffer).to(buffer.device)
            if kept.shape == buffer.shape and not torch.equal(kept, buffer):  # a cache that has grown goes on
                buffer.copy_(kept)


def _copied(value: Any) -> Any:
    """A copy of an entry of a `state_dict`: a tensor's on the CPU. What `get_extra_state` gives may be anything."""
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
