"""Distillation: the steps learn from the last one (FastBERT), or all of them from a frozen model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ponder._utils.validation import check_choice, check_int, check_real
from ponder.errors import ArgumentError
from ponder.objectives.base import Depth, Objective, Unrolled, cut_after, registry
from ponder.parts.tasks import Task
from ponder.parts.tasks.base import IGNORED_LABEL
from ponder.parts.tasks.distilling import check_distils

__all__ = ["Distillation", "distilled"]


@registry.register("distillation")
@dataclass(frozen=True)
class Distillation(Objective):
    r"""w · mean over the steps n of T² KL(softmax(t / T) ‖ softmax(z_n / T)), with the teacher t detached.

    The teacher is the last step, t = z_N, and the steps before it learn, as in FastBERT (Liu et al. 2020, Eqs. 5 and
    6), which takes the divergence the other way round, KL(student ‖ teacher), and the sum over the steps. Or it is a
    frozen model, such as a copy of the same encoder fine-tuned for its last step, and all N steps learn to agree with
    it (`PonderWrapper.attach_teacher`), or the one `step` that a smaller model ends with (Hinton et al. 2015; Sun et
    al. 2019). Hinton's T² keeps the temperature from scaling the gradient. In regression it is the squared distance to
    the teacher, in multilabel tasks the binary cross-entropy to it.

    Args:
        temperature: T > 0.
        weight: w ≥ 0.
        teacher: ``"last_step"`` or ``"frozen"``.
        step: The one step that a frozen teacher teaches, from 1; all steps where None.

    Raises:
        ArgumentError: A step is named, and the teacher is the last step; or the model has fewer steps.

    Example:
        >>> objective = objectives.FinalStep() + objectives.Distillation(2.0, 0.5)
        >>> objective.objectives[1]
        Distillation(temperature=2.0, weight=0.5, teacher='last_step', step=None)
    """

    temperature: float = 1.0
    weight: float = 1.0
    teacher: Literal["last_step", "frozen"] = "last_step"
    step: int | None = None

    @property
    def teaches_all_steps(self) -> bool:  # type: ignore[override]
        """Whether every step is taught, and not one alone."""
        return self.step is None

    def __post_init__(self) -> None:
        check_real("temperature", self.temperature, open_low=True, remedy="Pass temperature=1.0, say.")
        check_real("weight", self.weight)
        check_choice("teacher", self.teacher, ("last_step", "frozen"))
        if self.step is not None:
            check_int("step", self.step, remedy="Steps count from 1.")
            if self.teacher != "frozen":
                raise ArgumentError(
                    "step",
                    expected="None where the last step teaches all steps before it",
                    got=self.step,
                    remedy='Pass teacher="frozen".',
                )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """A frozen teacher, where that is the teacher; nothing where it is the last step."""
        return frozenset({"teacher"} if self.teacher == "frozen" else ())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; without what is at its default, so that earlier versions can read it."""
        fields = super().to_dict()
        later = {"teacher": "last_step", "step": None}
        return {name: value for name, value in fields.items() if name not in later or value != later[name]}

    def check_task(self, task: Task) -> None:
        check_distils(task)

    def depth(self, num_steps: int) -> Depth:
        return super().depth(num_steps) if self.step is None else cut_after(self.step, num_steps)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        if self.teacher == "frozen":
            students, teacher = self._taught(unrolled.outputs), unrolled.teacher_outputs
            assert teacher is not None  # `check_batch` saw to it
        else:
            students, teacher = unrolled.outputs[:, :-1], unrolled.outputs[:, -1]
        if not students.shape[1]:
            return 0.0 * unrolled.losses[:, -1]
        teachers = teacher.detach().unsqueeze(1).expand_as(students)
        return self.weight * distilled(unrolled, students, teachers, self.temperature).mean(1)

    def _taught(self, outputs: Tensor) -> Tensor:
        """Outputs of the steps that a frozen teacher teaches."""
        if self.step is None:
            return outputs
        cut = cut_after(self.step, outputs.shape[1])
        return outputs[:, cut.total - 1 : cut.total]


def distilled(unrolled: Unrolled, students: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    """The task's losses of students against their teachers, `(batch, pairs)`; outputs of both `(batch, pairs, …)`."""
    batch, pairs = students.shape[:2]
    task, mask = unrolled.task, unrolled.mask
    if task.per_token and mask is None and unrolled.labels is not None:
        mask = _up_to_the_last_label(unrolled.labels)
    told = {}
    if task.per_position and mask is not None:  # what policies compare is what is taught, whether it has a label or not
        told["mask"] = mask.repeat_interleave(pairs, dim=0)
    losses = task.distillation_losses(students.flatten(0, 1), teachers.flatten(0, 1), temperature, **told)
    return losses.reshape(batch, pairs)


def _up_to_the_last_label(labels: Tensor) -> Tensor:
    """Positions that are no padding as far as labels tell, `(batch, length)` bool: none behind a row's last label."""
    labelled = (labels != IGNORED_LABEL).flip(1)
    return labelled.cumsum(1).flip(1) > 0
