"""Mutual distillation: every step learns from all the others (LeeBERT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder._utils.validation import check_real
from ponder.objectives.base import Objective, Unrolled, registry
from ponder.objectives.distillation import distilled
from ponder.parts.tasks import Task
from ponder.parts.tasks.distilling import check_distils

__all__ = ["MutualDistillation"]


@registry.register("mutual-distillation")
@dataclass(frozen=True)
class MutualDistillation(Objective):
    r"""Mean over pairs n ≠ m of the distillation loss of step n against step m as a detached teacher.

    LeeBERT (Zhu 2021, Section 3.3) lets every exit teach every other and learns the weights of the pairs; here they
    weigh the same. Losses per pair are those of `Distillation`.

    Args:
        temperature: T > 0.

    Example:
        >>> objective = objectives.DeepSupervision("linear") + objectives.MutualDistillation(2.0)
        >>> objective.objectives[1]
        MutualDistillation(temperature=2.0)
    """

    temperature: float = 1.0

    teaches_all_steps = True

    def __post_init__(self) -> None:
        check_real("temperature", self.temperature, open_low=True)

    def check_task(self, task: Task) -> None:
        check_distils(task)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        outputs = unrolled.outputs
        steps = outputs.shape[1]
        if steps == 1:
            return 0.0 * unrolled.losses[:, -1]
        students, teachers = (~torch.eye(steps, dtype=torch.bool, device=outputs.device)).nonzero(as_tuple=True)
        return distilled(unrolled, outputs[:, students], outputs.detach()[:, teachers], self.temperature).mean(1)
