"""A frozen teacher: another model whose answers to a batch the steps of this one learn to give."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ponder._utils.trees import Tree, unwrap
from ponder.errors import ArgumentError, ArgumentTypeError

__all__ = ["FrozenTeacher", "check_no_shared_weights", "frozen_copy"]

Model = TypeVar("Model", bound=nn.Module)


def frozen_copy(model: Model) -> Model:
    """A copy of a model as it is now, in evaluation mode, without gradients."""
    copied = copy.deepcopy(model)
    copied.requires_grad_(False)
    copied.zero_grad(set_to_none=True)
    copied.eval()
    return copied


def check_no_shared_weights(student: nn.Module, teacher: object) -> None:
    """Refuse a teacher that has weights in common with the student: it would be trained along.

    Raises:
        ArgumentError: It does.
    """
    own = {id(weight) for weight in student.parameters()}
    if isinstance(teacher, nn.Module) and any(id(weight) in own for weight in teacher.parameters()):
        raise ArgumentError(
            "teacher",
            expected="a model that does not change while this one is trained",
            got="one that shares weights with it",
            remedy="Pass copy.deepcopy(teacher), made before the student is trained.",
        )


class FrozenTeacher:
    """Holds a teacher where neither `state_dict` nor an optimiser of the student finds it.

    Args:
        answer: (inputs, **context) → outputs `(batch, …)`; called without gradients.
        module: The module behind it, kept in evaluation mode and on the device of the student; None for a function.
        marked: Whether `answer` takes `ponder.Shared` values of the context with their mark, as a wrapped model does.
    """

    def __init__(self, answer: Callable[..., Any], module: nn.Module | None, *, marked: bool = False) -> None:
        self.answer = answer
        self.module = module
        self.marked = marked

    @torch.no_grad()
    def outputs(self, inputs: Tree, context: Mapping[str, Any], of_student: Tensor) -> Tensor:
        """The outputs of the teacher for a batch of the student.

        Args:
            inputs: What the student was called with.
            context: What it was called with besides.
            of_student: The student's outputs at one step, whose shape the teacher's must have.

        Raises:
            ArgumentError: The teacher answers in another shape: it was trained on another set of labels.
        """
        if self.module is not None:
            self.module.eval()
            weight = next(self.module.parameters(), None)
            if weight is not None and weight.device != of_student.device:
                self.module.to(of_student.device)
        outputs = self.answer(inputs, **(context if self.marked else unwrap(context)))
        if not isinstance(outputs, Tensor):
            raise ArgumentTypeError(
                "teacher",
                expected="a model or function that answers with one tensor (batch, …)",
                got=type(outputs).__name__,
                remedy="Wrap it: model.attach_teacher(lambda inputs, **context: teacher(inputs, **context).logits).",
            )
        if outputs.shape != of_student.shape:
            raise ArgumentError(
                "teacher",
                expected=f"outputs of the student's shape {tuple(of_student.shape)}: the same labels in the same order",
                got=f"shape {tuple(outputs.shape)}",
                remedy="Fine-tune the teacher on the student's own labels.",
            )
        return outputs
