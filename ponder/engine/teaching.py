"""A frozen teacher: another model whose answers to a batch the steps of this one learn to give."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from ponder._utils.modes import evaluating, evaluating_called
from ponder._utils.numerics import at_least_float32
from ponder._utils.trees import Shared, Tree, map_leaves, unwrap
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.callables import modules_of
from ponder.parts.tasks import Task
from ponder.parts.tasks.named import kind_of

__all__ = ["FrozenTeacher", "check_no_shared_weights", "check_same_task", "frozen_copy", "used_by"]

Model = TypeVar("Model", bound=nn.Module)


def frozen_copy(model: Model) -> Model:
    """A copy of a model as it is now, in evaluation mode, without gradients."""
    copied = copy.deepcopy(model)
    copied.requires_grad_(False)
    copied.zero_grad(set_to_none=True)
    copied.eval()
    return copied


def check_no_shared_weights(student: nn.Module, teacher: object) -> None:
    """Refuse a teacher that is the student, or has weights in common with it: it would be trained along.

    Raises:
        ArgumentError: It does.
    """
    own = {id(weight) for weight in student.parameters()}
    shares = isinstance(teacher, nn.Module) and any(id(weight) in own for weight in teacher.parameters())
    if teacher is student or shares:
        raise ArgumentError(
            "teacher",
            expected="a model that does not change while this one is trained",
            got="the model itself" if teacher is student else "one that shares weights with it",
            remedy="Pass copy.deepcopy(teacher), made before the student is trained.",
        )


def used_by(teacher: Callable[..., Any], student: nn.Module) -> nn.ModuleList:
    """The modules that a function or another callable uses, but for those of the student; none of a module itself.

    Args:
        teacher: What answers as a teacher.
        student: The model that learns from it.
    """
    own = {id(weight) for weight in student.parameters()}
    found = [] if isinstance(teacher, nn.Module) else modules_of(teacher)
    return nn.ModuleList(each for each in found if all(id(weight) not in own for weight in each.parameters()))


def check_same_task(student: Task | None, teacher: Task | None) -> None:
    """Refuse a teacher whose outputs mean something else than the student's, whatever their shape.

    A task that is not named, or a user's own, is taken at its word: nobody knows here what its outputs mean.

    Raises:
        ArgumentError: The two have different tasks of this library.
    """
    if student is None or teacher is None or None in (kinds := {kind_of(student), kind_of(teacher)}):
        return
    if len(kinds) > 1:
        raise ArgumentError(
            "teacher",
            expected=f"a model of the student's task, {student.name!r}",
            got=f"one of the task {teacher.name!r}",
            remedy="Fine-tune the teacher on the student's own task and labels.",
        )


class FrozenTeacher:
    """Holds a teacher where neither `state_dict` nor an optimiser of the student finds it.

    Args:
        answer: (inputs, **context) → outputs `(batch, …)`; called without gradients.
        module: The module behind it, kept in evaluation mode and on the device of the student; None for a function.
        marked: Whether `answer` takes `ponder.Shared` values of the context with their mark, as a wrapped model does.
        numbers: Whether its answers are numbers, all of which have to be finite, and no logits.
        classes: Whether its answers are taken for the logits of classes, though nobody said that they are.
        used: Modules that a function uses, in evaluation mode while it answers; those that its first answer has called
            join them.
    """

    looked_at = False
    """Whether the numbers of a first batch were looked at; later ones are not, since an accelerator waits for it."""

    def __init__(
        self,
        answer: Callable[..., Any],
        module: nn.Module | None,
        *,
        marked: bool = False,
        numbers: bool = False,
        classes: bool = False,
        used: nn.ModuleList | None = None,
    ) -> None:
        self.answer = answer
        self.module = module
        self.marked = marked
        self.numbers = numbers
        self.classes = classes
        self.used = used

    @torch.no_grad()
    def outputs(self, inputs: Tree, context: Mapping[str, Any], of_student: Tensor) -> Tensor:
        """The outputs of the teacher for a batch of the student.

        Args:
            inputs: What the student was called with.
            context: What it was called with besides.
            of_student: The student's outputs at one step, whose shape the teacher's must have.

        Raises:
            ArgumentError: The teacher answers in another shape: it was trained on another set of labels; or there is
                nothing finite to learn from in a row of its first batch.
        """
        if self.module is not None:
            self.module.eval()
            weight = next(self.module.parameters(), None)
            if weight is not None and weight.device != of_student.device:
                self.module.to(of_student.device)
            inputs, context = _as_teachers(self.module, of_student.dtype, (inputs, dict(context)))
        called = list[nn.Module]()
        with ExitStack() as modes:
            if self.used:
                modes.enter_context(evaluating(self.used))
            if self.module is None and not (self.looked_at or torch.compiler.is_compiling()):
                called = modes.enter_context(evaluating_called())
            outputs = self.answer(inputs, **(context if self.marked else unwrap(context)))
        if called:
            self.used = nn.ModuleList([*(self.used or ()), *called])
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
        if not (torch.compiler.is_compiling() or self.looked_at or is_functorch_wrapped_tensor(outputs)):
            self._look_at(outputs)
            self.looked_at = True
        return outputs

    def _look_at(self, outputs: Tensor) -> None:
        """Refuse first outputs that teach a row nothing, and warn of such as are no logits."""
        # A class may be excluded by a logit of −∞, and anything may stand at the padding among positions.
        finite = at_least_float32(outputs).logsumexp(-1).isfinite()
        if self.numbers:
            finite = outputs.isfinite().all(-1) if outputs.dim() > 1 else outputs.isfinite()
        taught = finite.flatten(1).any(1) if finite.dim() > 1 else finite
        if not bool(taught.all()):
            raise ArgumentError(
                "teacher",
                expected="finite outputs for every row",
                got=f"NaN or infinity in {int((~taught).sum())} of the first {taught.numel()} rows",
                remedy="See what the teacher computes of these inputs: in half precision it may overflow.",
            )
        sums = at_least_float32(outputs).sum(-1)
        if self.classes and outputs.shape[-1] > 1 and bool((outputs >= 0).all() & ((sums - 1).abs() < 1e-2).all()):
            warnings.warn(
                "teacher: its outputs are never negative and sum to 1, as probabilities do, and are read as logits, of "
                "which the softmax is taken again. Let it give logits, or log-probabilities: "
                "lambda inputs, **context: teacher(inputs, **context).log().",
                stacklevel=2,
            )


def _as_teachers(teacher: nn.Module, dtype: torch.dtype, given: Tree) -> Tree:
    """What a teacher is called with: what has the student's `dtype` gets the teacher's own, where it has just one."""
    own = {weight.dtype for weight in teacher.parameters() if weight.is_floating_point()}
    if len(own) != 1 or dtype in own:
        return given

    def cast(value: Any) -> Any:
        if isinstance(value, Shared):
            return Shared(map_leaves(cast, value.value))
        return value.to(next(iter(own))) if isinstance(value, Tensor) and value.dtype == dtype else value

    return map_leaves(cast, given)
