"""The tasks by their names: what a user says, what was recorded, and what outputs and labels tell."""

from __future__ import annotations

from torch import Tensor

from ponder.errors import ArgumentError
from ponder.parts.tasks.base import Task, TaskName
from ponder.parts.tasks.classification import Classification, Unnamed
from ponder.parts.tasks.custom import Custom, LossFunction
from ponder.parts.tasks.multilabel import Multilabel
from ponder.parts.tasks.regression import Regression
from ponder.parts.tasks.span import Span
from ponder.parts.tasks.token_classification import TokenClassification

__all__ = ["answers_as", "answers_otherwise", "as_task", "infer_task", "kind_of", "task_named", "task_recorded"]

_TASKS: dict[str, Task] = {
    task.name: task for task in (Classification(), Regression(), Multilabel(), TokenClassification(), Span())
}
_UNNAMED = Unnamed()


def as_task(task: TaskName | LossFunction | Task | None) -> Task | None:
    """The task that a user names, or wraps in a callable; None stays None (see `infer_task` and `task_named`).

    Example:
        >>> as_task("regression").name, as_task(None)
        ('regression', None)
        >>> absolute = as_task(lambda outputs, labels: (outputs - labels).abs().mean(-1))
        >>> absolute.losses(torch.ones(2, 1), torch.zeros(2, 1))
        tensor([1., 1.])
    """
    if task is None or isinstance(task, Task):
        return task
    if callable(task):
        return Custom(task)
    if task not in _TASKS:
        raise ArgumentError(
            "task",
            expected=f"one of {', '.join(_TASKS)}, or a callable (outputs, labels) -> losses (batch,)",
            got=repr(task),
            remedy="Correct the name.",
        )
    return _TASKS[task]


def task_named(name: str | None) -> Task:
    """The task of a name that was recorded, `Task.name`; None stands for a model that names none.

    A name that is not one of this library's is that of a user's own task, of which no more is known here.

    Example:
        >>> from typing import get_args
        >>> [task_named(name).name for name in get_args(TaskName)]
        ['classification', 'regression', 'multilabel', 'token_classification', 'span']
    """
    if name is None or name == Unnamed.name:
        return _UNNAMED
    return _TASKS.get(name) or Custom()


def task_recorded(
    name: str | None, *, classes: bool, numbers: bool, per_token: bool = False, per_position: bool = False
) -> Task:
    """The task of a name beside which it was recorded what outputs are; a user's own answers as one of the library's.

    Where a user's own has answers of a kind at each position that none of the library's has, it is the same a row.

    Example:
        >>> task_recorded("focal", classes=True, numbers=False).name
        'classification'
        >>> task_recorded("pinball", classes=False, numbers=True).name
        'regression'
    """
    if name is None or name == Unnamed.name or name in _TASKS:
        return task_named(name)
    if per_position and not numbers and classes == per_token:
        return _TASKS["token_classification" if per_token else "span"]
    return _TASKS["regression" if numbers else "classification" if classes else "multilabel"]


def infer_task(outputs: Tensor, labels: Tensor) -> Task:
    """The task of a model that names none: integer labels are classes, all others are numbers.

    Example:
        >>> infer_task(torch.zeros(2, 3), torch.tensor([0, 2])).name, infer_task(torch.zeros(2, 1), torch.zeros(2)).name
        ('classification', 'regression')
    """
    if labels.is_floating_point() or outputs.shape[-1] == 1:
        return _TASKS["regression"]
    return _TASKS["token_classification" if outputs.dim() == 3 else "classification"]


def kind_of(task: Task) -> str | None:
    """The name of the task of this library that a task is or derives from; None for any other.

    Example:
        >>> from ponder.parts.tasks.named import kind_of
        >>> class Focal(ponder.tasks.Classification):
        ...     name = "focal"
        >>> kind_of(Focal()), kind_of(ponder.tasks.Multilabel()), kind_of(as_task(torch.nn.functional.l1_loss))
        ('classification', 'multilabel', None)
    """
    return next((name for name, known in _TASKS.items() if isinstance(task, type(known))), None)


def answers_otherwise(task: Task) -> bool:
    """Whether a task goes by a name of this library's and answers otherwise than the task of that name.

    A subclass that changes losses alone, or the check of labels, does not.

    Example:
        >>> from ponder.parts.tasks.named import answers_otherwise
        >>> class Focal(ponder.tasks.Classification):
        ...     def losses(self, outputs, labels):
        ...         return super().losses(outputs, labels) ** 2
        >>> class Screening(ponder.tasks.Classification):
        ...     def predictions(self, outputs):
        ...         return (outputs.softmax(-1)[..., 1] > 0.9).long()
        >>> answers_otherwise(Focal()), answers_otherwise(Screening())
        (False, True)
    """
    own = task_named(task.name)
    return not isinstance(own, Custom) and not answers_as(task, own)


def answers_as(task: Task, other: Task) -> bool:
    """Whether a task derives from that of another, and answers as it does."""
    own = type(other)
    return isinstance(task, own) and all(getattr(type(task), name) == getattr(own, name) for name in _ANSWERS)


_ANSWERS = (
    *("agreement", "answered", "classes", "comparable", "confidences", "correct", "distance", "fits", "labelled"),
    *("metric", "numbers", "per_position", "per_token", "predictions", "same", "scores", "without_padding"),
)
"""What of a task decides what outputs answer, and whether that is right."""
