"""Distillation from the last step (FastBERT), a frozen model, or other steps (LeeBERT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ponder._utils.checks import check_choice, check_real
from ponder.objectives.base import Depth, Objective, Unrolled
from ponder.objectives.supervised import OneStep

__all__ = ["Distillation", "MutualDistillation"]


@dataclass(frozen=True)
class Distillation(Objective):
    r"""w · mean over steps n of T² KL(softmax(t / T) ‖ softmax(z_n / T)), with a detached t.

    The teacher is the last step, t = z_N, and the steps before it learn, as in FastBERT (Liu et al.
    2020, Eqs. 5 and 6), which takes the divergence the other way round, KL(student ‖ teacher), and
    the sum over the steps. Or it is a frozen model, such as a copy of the same encoder fine-tuned
    for its last step, and all N steps learn to agree with it, or the one `step` that a smaller
    model ends with (Hinton et al. 2015; Sun et al. 2019). Hinton's T² keeps the temperature from
    scaling the gradient. In regression it is the squared distance to the teacher, in multilabel
    tasks the binary cross-entropy to it.

    Args:
        temperature: T > 0.
        weight: w ≥ 0.
        teacher: ``"last_step"`` or ``"frozen"``.
        step: The one step that a frozen teacher teaches, from 1; None for all steps.

    Example:
        >>> objective = objectives.FinalStep() + objectives.Distillation(2.0, 0.5)
        >>> objective.objectives[1]
        Distillation(temperature=2.0, weight=0.5, teacher='last_step', step=None)
    """

    temperature: float = 1.0
    weight: float = 1.0
    teacher: Literal["last_step", "frozen"] = "last_step"
    step: int | None = None

    def __post_init__(self) -> None:
        check_real("temperature", self.temperature, open_low=True)
        check_real("weight", self.weight)
        teachers = ["frozen"]
        if self.step is None:
            teachers.append("last_step")
        check_choice("teacher", self.teacher, teachers)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The need of a teacher, if it is a frozen model and not the last step."""
        if self.teacher == "frozen":
            return frozenset({"teacher"})
        return frozenset()

    def depth(self, num_steps: int) -> Depth:
        if self.step is None:
            return super().depth(num_steps)
        return OneStep(self.step).depth(num_steps)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        if self.teacher == "last_step":
            students = unrolled.outputs[:, :-1]
            teacher = unrolled.outputs[:, -1]
        else:
            students = unrolled.outputs
            if self.step is not None:
                students = students[:, self.step - 1 : self.step]
            teacher = unrolled.given("teacher_outputs")
        teachers = teacher.detach().unsqueeze(1).expand_as(students)
        return self.weight * _distilled(unrolled, students, teachers, self.temperature)


@dataclass(frozen=True)
class MutualDistillation(Objective):
    r"""Mean over pairs n ≠ m of the distillation loss of step n from the detached step m.

    LeeBERT (Zhu 2021, Section 3.3) lets every exit teach every other and learns the weights of the
    pairs; here all weights are equal. The losses of pairs are those of `Distillation`.

    Args:
        temperature: T > 0.

    Example:
        >>> objective = objectives.DeepSupervision("linear") + objectives.MutualDistillation(2.0)
        >>> objective.objectives[1]
        MutualDistillation(temperature=2.0)
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_real("temperature", self.temperature, open_low=True)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        outputs = unrolled.outputs
        pairs = ~torch.eye(outputs.shape[1], dtype=torch.bool, device=outputs.device)
        students, teachers = pairs.nonzero(as_tuple=True)
        return _distilled(
            unrolled, outputs[:, students], outputs.detach()[:, teachers], self.temperature
        )


def _distilled(
    unrolled: Unrolled, students: Tensor, teachers: Tensor, temperature: float
) -> Tensor:
    """Return the task's mean loss of students against their teachers, `(batch,)`.

    Both `(batch, pairs, …)`.
    """
    batch, pairs = students.shape[:2]
    if not pairs:  # one step, which nothing teaches
        return 0.0 * unrolled.losses[:, -1]
    mask = unrolled.mask
    if mask is not None:
        mask = mask.repeat_interleave(pairs, dim=0)
    losses = unrolled.task.distillation_losses(
        students.flatten(0, 1), teachers.flatten(0, 1), temperature, mask
    )
    return losses.reshape(batch, pairs).mean(1)
