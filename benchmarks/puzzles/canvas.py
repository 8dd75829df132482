"""Problems of several sizes in one tensor: each stands in a corner of a canvas, and a mask says where it ends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.puzzles.puzzle import Problems
from ponder.parts.tasks.base import IGNORED_LABEL

__all__ = ["Canvas", "on_canvas"]


@dataclass(frozen=True)
class Canvas:
    """Problems on canvases of one size.

    Args:
        inputs: `(batch, channels, …)`, 0 beyond a problem's end.
        mask: `(batch, positions)` long, 1 inside and 0 beyond; None where there is one size only.
        labels: `(batch, positions)` long, −100 beyond.
        difficulty: `(batch,)` long.
    """

    inputs: Tensor
    mask: Tensor | None
    labels: Tensor
    difficulty: Tensor

    def context(self, rows: slice | Tensor) -> dict[str, Tensor]:
        """What the solver is called with besides the inputs of these rows."""
        return {} if self.mask is None else {"attention_mask": self.mask[rows]}


def on_canvas(parts: Iterable[Problems]) -> Canvas:
    """Join problems of several sizes; those of the largest size fill their canvas."""
    parts = list(parts)
    difficulty = torch.cat([part.difficulty for part in parts])
    if parts[0].inputs.dim() == 2:  # digits in cells: one size only
        return Canvas(torch.cat([p.inputs for p in parts]), None, torch.cat([p.labels for p in parts]), difficulty)
    size = max(part.inputs.shape[-1] for part in parts)
    inputs, masks, labels = [], [], []
    for part in parts:
        space = part.inputs.shape[2:]
        beyond = [0, size - space[-1]] * len(space)
        inputs.append(F.pad(part.inputs, beyond))
        masks.append(F.pad(torch.ones_like(part.labels).unflatten(1, space), beyond).flatten(1))
        labels.append(F.pad(part.labels.unflatten(1, space), beyond, value=IGNORED_LABEL).flatten(1))
    return Canvas(torch.cat(inputs), torch.cat(masks), torch.cat(labels), difficulty)
