"""Plain fine-tuning: the loss of the last step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ponder.objectives.base import Objective, Unrolled, registry

__all__ = ["FinalStep"]


@registry.register("final-step")
@dataclass(frozen=True)
class FinalStep(Objective):
    """The loss of the last step alone, ℓ_N, as a model without exits is trained.

    Example:
        >>> model = PonderWrapper(nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2), objective=objectives.FinalStep())
        >>> model(torch.randn(5, 4), labels=torch.tensor([0, 1, 0, 1, 1])).loss.shape
        torch.Size([])
    """

    def per_example(self, unrolled: Unrolled) -> Tensor:
        return unrolled.losses[:, -1]
