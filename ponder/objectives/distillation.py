"""Self-distillation: earlier steps learn from the last one (FastBERT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder._utils.validation import check_real
from ponder.objectives.base import Objective, Unrolled, registry

__all__ = ["Distillation"]


@registry.register("distillation")
@dataclass(frozen=True)
class Distillation(Objective):
    r"""w · mean over n < N of T² KL(softmax(z_N / T) ‖ softmax(z_n / T)), with the teacher z_N detached.

    FastBERT (Liu et al. 2020, Eq. 8) with Hinton's T² so that the temperature does not scale the gradient. In
    regression the squared distance to the teacher, in multilabel tasks the binary cross-entropy to it.

    Args:
        temperature: T > 0.
        weight: w ≥ 0.
    """

    temperature: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_real("temperature", self.temperature, open_low=True)
        check_real("weight", self.weight)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        *students, teacher = unrolled.outputs.unbind(1)
        if not students:
            return 0.0 * unrolled.losses[:, -1]
        teacher = teacher.detach()
        losses = [unrolled.task.distillation_losses(s, teacher, self.temperature) for s in students]
        return self.weight * torch.stack(losses, dim=1).mean(1)
