"""Alignment: early features are drawn to those of the last step, so that answers stop changing sooner (LEAP)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder._utils.validation import check_real
from ponder.objectives.base import Objective, Unrolled, registry
from ponder.parts.tasks.base import fits_positions

__all__ = ["Alignment"]


@registry.register("alignment")
@dataclass(frozen=True)
class Alignment(Objective):
    r"""w · mean over n < N of 1 − cos(f_n, f_N), with the features f_N of the last step detached.

    After LEAP (Kapadia et al. 2026, "LEAP: Layer-wise Exit-Aware Pretraining for Efficient Transformer Inference",
    arXiv 2605.01058), which adds one term to distillation so that intermediate layers approximate the representation of
    the last; there in pretraining of an embedding model, here beside any loss. Features are what the readout gives;
    where they have positions, those of padding do not count.

    Args:
        weight: w ≥ 0.

    Example:
        >>> model.objective = objectives.FinalStep() + objectives.Alignment(0.1)
        >>> model.train()(inputs, labels=labels).loss.shape
        torch.Size([])
    """

    weight: float = 1.0
    needs = frozenset({"features"})

    def __post_init__(self) -> None:
        check_real("weight", self.weight)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        assert unrolled.features is not None  # `check_batch` saw to it
        features = at_least_float32(unrolled.features)
        if features.shape[1] == 1:
            return 0.0 * unrolled.losses[:, -1]
        distance = 1.0 - F.cosine_similarity(features[:, :-1], features[:, -1:].detach(), dim=-1)
        if unrolled.mask is not None and fits_positions(unrolled.mask, distance, dim=2):
            inside = unrolled.mask.unsqueeze(1).view(len(distance), 1, -1, *[1] * (distance.dim() - 3))
            inside = inside.expand_as(distance).flatten(1)
            return self.weight * torch.where(inside, distance.flatten(1), 0.0).sum(1) / inside.sum(1)
        return self.weight * distance.flatten(1).mean(1)
