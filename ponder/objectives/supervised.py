"""Objectives on label losses alone: of the last step, one step, all, or a random depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ponder._utils.checks import check_choice, check_int
from ponder.objectives.base import Depth, Objective, Unrolled

__all__ = ["DeepSupervision", "FinalStep", "OneStep", "RandomDepth"]


@dataclass(frozen=True)
class FinalStep(Objective):
    """The loss of the last step alone, ℓ_N, as a model without exits is trained.

    Example:
        >>> model = PonderWrapper(
        ...     nn.Linear(4, 4), 3, head=nn.Linear(4, 2), objective=objectives.FinalStep()
        ... )
        >>> model(torch.randn(5, 4), labels=torch.tensor([0, 1, 0, 1, 1])).loss.shape
        torch.Size([])
    """

    def per_example(self, unrolled: Unrolled) -> Tensor:
        return unrolled.losses[:, -1]


@dataclass(frozen=True)
class OneStep(Objective):
    """ℓ_k, as if the encoder ended after step k: in training no later step runs, and none learns.

    Args:
        step: k, from 1 to the number of steps.

    Example:
        >>> objectives.OneStep(2).depth(num_steps=12)
        Depth(warm_up=0, steps=2, detached=False)
    """

    step: int

    def depth(self, num_steps: int) -> Depth:
        check_int("step", self.step, 1, num_steps)
        return Depth(0, self.step)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        return unrolled.losses[:, self.step - 1]


@dataclass(frozen=True)
class DeepSupervision(Objective):
    r"""The weighted mean of the losses of all steps, Σ_n w_n ℓ_n / Σ_n w_n.

    Args:
        weights: ``"linear"``, w_n = n (PABEE: Zhou et al. 2020, Eq. 4); ``"uniform"``, w_n = 1 (the
            mean of DeeBERT's second stage, Xin et al. 2020).

    Example:
        >>> objectives.DeepSupervision("uniform") + 0.5 * objectives.FinalStep()
        Weighted(objectives=(DeepSupervision(weights='uniform'), FinalStep()), weights=(1.0, 0.5))
    """

    weights: Literal["linear", "uniform"] = "linear"

    def __post_init__(self) -> None:
        check_choice("weights", self.weights, ("linear", "uniform"))

    def per_example(self, unrolled: Unrolled) -> Tensor:
        weights = torch.ones_like(unrolled.losses[0])
        if self.weights == "linear":
            weights = weights.cumsum(0)
        return (unrolled.losses * (weights / weights.sum())).sum(-1)


@dataclass(frozen=True)
class RandomDepth(Objective):
    r"""ℓ_{k+n}, after k steps without and n steps with a gradient; both are drawn for every batch.

    k is uniform on 0..`warm_up` and n uniform on `minimum`..min(`maximum`, N − k). A shared step
    that is trained to continue from any state that it has made itself continues to improve the
    answer if it is run for longer than in training. ``RandomDepth(warm_up=None)`` is the
    progressive loss of Bansal et al. 2022 (arXiv 2202.05826, Section 3.2). A small `maximum` cuts
    backpropagation through steps short: its memory and time do not grow with N.

    Args:
        minimum: Fewest steps with a gradient, ≥ 1.
        maximum: Most steps with a gradient, at least `minimum`; by default N.
        warm_up: Most steps without a gradient, ≥ 0; None leaves room for `minimum`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> objectives.RandomDepth(minimum=2, maximum=4, warm_up=8).depth(12)
        Depth(warm_up=8, steps=2, detached=False)
    """

    minimum: int = 1
    maximum: int | None = None
    warm_up: int | None = 0
    draws_depth = True

    def depth(self, num_steps: int) -> Depth:
        check_int("num_steps", num_steps, self.minimum + (self.warm_up or 0))
        most_warm_up = self.warm_up
        if most_warm_up is None:
            most_warm_up = num_steps - self.minimum
        warm_up = int(torch.randint(0, 1 + most_warm_up, ()))
        most = num_steps - warm_up
        if self.maximum is not None:
            most = min(self.maximum, most)
        return Depth(warm_up, int(torch.randint(self.minimum, most + 1, ())))

    def per_example(self, unrolled: Unrolled) -> Tensor:
        return unrolled.losses[:, -1]
