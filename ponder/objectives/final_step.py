"""Plain fine-tuning: the loss of the last step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ponder.objectives.base import Objective, Unrolled, registry

__all__ = ["FinalStep"]


@registry.register("final-step")
@dataclass(frozen=True)
class FinalStep(Objective):
    """ℓ_N, as without `ponder`."""

    def per_example(self, unrolled: Unrolled) -> Tensor:
        return unrolled.losses[:, -1]
