"""Tasks: what outputs and labels mean, one file each. Every question about an answer is asked here.

A task tells the loss of an answer, what is predicted, when two predictions are the same, whether one is right, and how
sure the head is of it. Policies, scores, risks and plots ask the task object; none of them knows a task by its name.

A class label of −100 is none, as in PyTorch: what has it counts for nothing, in the loss and in its gradient. (A number
of −100 is a number; and of a text a teacher teaches every position that is no padding, see `Task.distillation_losses`.)
"""

from ponder.parts.tasks.base import Task, TaskName
from ponder.parts.tasks.classification import Classification
from ponder.parts.tasks.custom import Custom
from ponder.parts.tasks.labels import hard_labels
from ponder.parts.tasks.multilabel import Multilabel
from ponder.parts.tasks.named import as_task, infer_task, task_named
from ponder.parts.tasks.regression import Regression
from ponder.parts.tasks.span import Span
from ponder.parts.tasks.token_classification import TokenClassification

__all__ = [
    "Classification",
    "Custom",
    "Multilabel",
    "Regression",
    "Span",
    "Task",
    "TaskName",
    "TokenClassification",
    "as_task",
    "hard_labels",
    "infer_task",
    "task_named",
]
