"""Deep supervision: every step answers, and the losses are averaged (PABEE, DeeBERT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ponder._utils.validation import check_choice
from ponder.objectives.base import Objective, Unrolled, registry

__all__ = ["DeepSupervision"]


@registry.register("deep-supervision")
@dataclass(frozen=True)
class DeepSupervision(Objective):
    r"""The weighted mean of the losses of all steps, Σ_n w_n ℓ_n / Σ_n w_n.

    Args:
        weights: ``"linear"``, w_n = n (PABEE: Zhou et al. 2020, Eq. 4); ``"uniform"``, w_n = 1 (the mean of
            DeeBERT's second stage, Xin et al. 2020).

    Example:
        >>> objectives.DeepSupervision("uniform") + 0.5 * objectives.FinalStep()
        Weighted(objectives=(DeepSupervision(weights='uniform'), FinalStep()), weights=(1.0, 0.5))
    """

    weights: Literal["linear", "uniform"] = "linear"
    teaches_all_steps = True

    def __post_init__(self) -> None:
        check_choice("weights", self.weights, ("linear", "uniform"))

    def per_example(self, unrolled: Unrolled) -> Tensor:
        losses = unrolled.losses
        weights = torch.ones_like(losses[0])
        if self.weights == "linear":
            weights = weights.cumsum(0)
        return (losses * (weights / weights.sum())).sum(-1)
