"""Plain fine-tuning: the loss of the last step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ponder.objectives.base import Objective, Unrolled, registry

__all__ = ["FinalStep"]


@registry.register("final-step")
@dataclass(frozen=True)
class FinalStep(Objective):
    """The loss of the last step alone, ℓ_N, as a model without exits is trained."""

    def per_example(self, unrolled: Unrolled) -> Tensor:
        return unrolled.losses[:, -1]
