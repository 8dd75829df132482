"""What a task is: every question about an answer is asked of it, by policies, scores, risks and plots alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder._utils.validation import check_real
from ponder.errors import ArgumentError

__all__ = ["IGNORED_LABEL", "Smoothable", "Task", "TaskName", "all_parts", "fits_positions", "no_distillation"]

TaskName = Literal["classification", "regression", "multilabel", "token_classification", "span"]
IGNORED_LABEL = -100


class Task(ABC):
    """What the outputs of a head mean.

    Outputs of one step are `(batch, …)`; where a method takes those of all steps, `(batch, steps, …)`, it says so.

    Example:
        >>> task = task_named("classification")
        >>> task.losses(torch.zeros(2, 3), torch.tensor([0, 2]))  # (batch, classes) and (batch,) → (batch,)
        tensor([1.0986, 1.0986])
        >>> task.predictions(torch.tensor([[0.1, 0.9, 0.0]]))
        tensor([1])
    """

    name: ClassVar[str]
    each_row_alone: ClassVar[bool] = False
    """Whether `losses` may be called once with the rows of all steps: it looks at each row alone. A class that has its
    own `losses` says so again where that holds."""
    classes: ClassVar[bool] = False
    """Whether the last dimension of the outputs holds the logits of classes, of which one is predicted."""
    supposed: bool = False
    """Whether nobody said if they are `classes`, so that what reads class probabilities warns."""
    numbers: ClassVar[bool] = False
    """Whether predictions are numbers, which are the same only within a tolerance."""
    comparable: ClassVar[bool] = True
    """Whether predictions are the same or not, and right or wrong, with nothing in between."""
    per_token: ClassVar[bool] = False
    """Whether an example has an answer at each of its positions, and so outputs that have positions."""
    per_position: ClassVar[bool] = False
    """Whether outputs are `(batch, length, …)`, to answer at each position or to choose among them."""
    several_answers: ClassVar[bool] = False
    """Whether an example has several answers, each right or wrong by itself: one a token, or one a label."""
    blank: ClassVar[float] = 0.0
    """What stands in outputs beyond the end of a row, where they have positions."""
    metric: ClassVar[str | None] = "accuracy"
    """Name of the task's own score, the mean over rows of `scores`; None where there is none."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.per_token:
            cls.per_position = cls.several_answers = True
        if "losses" in vars(cls) and "each_row_alone" not in vars(cls):
            cls.each_row_alone = False

    @property
    def one_class(self) -> bool:
        """Whether the answer of an example is one class, which is right or wrong."""
        return self.classes and self.comparable and not self.per_token

    @property
    def exact_match(self) -> bool:
        """Whether the accuracy of rows, its own score, asks that all of several answers be right."""
        return self.several_answers and self.metric == "accuracy"

    @abstractmethod
    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Negative log-likelihoods, `(batch,)`, of `labels` under the outputs of one step, `(batch, …)`."""

    def smoothed(self, label_smoothing: float) -> Task:
        """The same task with smoothed labels, see `Classification`.

        Raises:
            ArgumentError: A share that is none, or a task whose labels are no classes.
        """
        raise ArgumentError(
            "label_smoothing",
            expected="0: only classes can be smoothed (classification, multilabel, token_classification)",
            got=f"{label_smoothing} with the task {self.name!r}",
            remedy="Leave it out.",
        )

    def labelled(self, labels: Tensor) -> Tensor | None:
        """Which rows have a label at all, `(batch,)` bool, the others counting for nothing; None where all have."""
        return None

    @abstractmethod
    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Labels in the shape and type that `losses` takes, or an error; `outputs` are those of one step."""

    def fits(self, outputs: Tensor) -> bool:
        """Whether the outputs of one step have the shape of class logits, where the task has classes."""
        return not self.classes or (outputs.dim() == (3 if self.per_token else 2) and outputs.shape[-1] > 1)

    def answered(self, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Which rows have an answer at all, `(batch,)` bool: outputs `(batch, …)` of one step without NaN.

        Args:
            outputs: Outputs of one step.
            mask: Which positions count, `(batch, length)` bool; None for all.
        """
        nan = outputs.isnan()
        if mask is not None and self.per_position and fits_positions(mask, outputs):
            nan = nan.flatten(2).any(2) & mask
        return ~(nan.flatten(1).any(1) if nan.dim() > 1 else nan)

    def without_padding(self, outputs: Tensor, mask: Tensor | None) -> Tensor:
        """The outputs of one step or of all, of which none is an answer at padding, where one position is chosen.

        Args:
            outputs: `(batch, length, …)` or `(batch, steps, length, …)`.
            mask: Which positions count, `(batch, length)` bool; None for all.
        """
        return outputs

    def inside(self, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Checked labels, of which those at padding are ignored ones.

        Args:
            labels: Labels, batch first.
            mask: Which positions count, `(batch, length)` bool; None for all.
        """
        return labels.masked_fill(~mask, IGNORED_LABEL) if self.per_token and mask is not None else labels

    def predictions(self, outputs: Tensor) -> Tensor:
        """What the outputs `(…, outputs)` predict: the most probable class, `(…)` long, where nothing else is said."""
        return outputs.argmax(-1)

    def same(self, one: Tensor, other: Tensor, *, tolerance: float = 0.0, mask: Tensor | None = None) -> Tensor:
        """Whether predictions `(batch, …)` are the same in every part, `(batch,)` bool.

        Args:
            one: Predictions.
            other: Predictions of the same rows.
            tolerance: How far apart equal numbers may be, for tasks of numbers.
            mask: Which positions count, `(batch, length)` bool; None for all.
        """
        equal = (one - other).abs() < tolerance if self.numbers else one == other
        counted = self._counted(mask, equal)
        return all_parts(equal if counted is None else equal | ~counted, 1)

    def distance(self, one: Tensor, other: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """How far predictions `(batch, …)` are apart, `(batch,)`: the share of parts that are others, from 0 to 1.

        For tasks of numbers, the greatest difference. Arguments as for `same`.
        """
        apart = (one - other).abs() if self.numbers else (one != other).float()
        counted = self._counted(mask, apart)
        if counted is not None:
            apart = torch.where(counted, apart, 0.0)
        parts = apart.flatten(1) if apart.dim() > 1 else apart.unsqueeze(1)
        if self.numbers:
            return parts.amax(1)
        return parts.sum(1) / (parts.shape[1] if counted is None else counted.expand_as(apart).flatten(1).sum(1))

    def agreement(self, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Whether the prediction of each step is that of the last, `(batch, steps)` bool.

        Args:
            outputs: Outputs of all steps, `(batch, steps, …)`.
            mask: Which positions count, `(batch, length)` bool; None for all.
        """
        given = self.predictions(outputs)
        equal = given == given[:, -1:]
        counted = self._counted(mask, equal, dim=2)
        return all_parts(equal if counted is None else equal | ~counted, 2)

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Whether the prediction of each step is right in every part, `(batch, steps)` bool."""
        return all_parts(self.predictions(outputs) == labels.unsqueeze(1), 2)

    def scores(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The values, `(batch, steps)` float64, whose mean over rows is the score `metric`, the higher the better."""
        return self.correct(outputs, labels).double()

    def confidences(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """How probable the head holds each of its predictions, and whether it is right: both `(predictions, steps)`.

        A prediction is a row, or one label or one labelled token of a row.

        Args:
            outputs: Outputs of all steps, `(batch, steps, …)`.
            labels: Labels, batch first.
        """
        probability = at_least_float32(outputs).softmax(-1).amax(-1)
        return probability, self.predictions(outputs) == labels.unsqueeze(1)

    def distillation_losses(
        self, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        """Losses, `(rows,)`, of outputs against the teacher's, each row alone: the rows of all steps come at once.

        Args:
            student: Outputs, `(rows, …)`.
            teacher: The teacher's outputs of the same rows.
            temperature: By which both are divided, where they are logits.
            mask: Which positions of a row are no padding, `(rows, length)` bool, where outputs have positions: these
                are taught, whether they have a label or not, since policies compare the answers of all. None for all.
        """
        raise no_distillation(self)

    def _counted(self, mask: Tensor | None, parts: Tensor, dim: int = 1) -> Tensor | None:
        """Which parts of predictions count, to be broadcast to them; None for all.

        Args:
            mask: Which positions count, `(batch, length)` bool; None for all.
            parts: A value for each part, batch first.
            dim: The dimension of their positions: one may have several numbers.
        """
        if mask is None or not self.per_token or mask.shape[1] != parts.shape[dim]:
            return None  # where a stem makes other positions, nobody knows padding
        return mask.view(mask.shape[0], *[1] * (dim - 1), mask.shape[1], *[1] * (parts.dim() - dim - 1))


class Smoothable(Task):
    """A task of classes, whose labels may be smoothed; see `Classification`."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        check_real("label_smoothing", label_smoothing, 0.0, 1.0, open_high=True)
        self.label_smoothing = float(label_smoothing)

    def smoothed(self, label_smoothing: float) -> Task:
        made = copy(self)  # with all that a subclass adds
        Smoothable.__init__(made, label_smoothing)
        return made


def fits_positions(mask: Tensor | None, tensor: Tensor, dim: int = 1) -> bool:
    """Whether a mask tells the positions in a dimension: where a stem makes others of them, nobody knows padding.

    Args:
        mask: `(batch, length)`, or None.
        tensor: Batch first, of at least three dimensions where it has positions.
        dim: The dimension.
    """
    return mask is not None and tensor.dim() > 2 and mask.shape[1] == tensor.shape[dim]


def positions_of(mask: Tensor, task: Task, features: Tensor | None) -> Tensor | None:
    """The mask, where what was read of a step has positions: outputs by their task, features by their shape.

    Args:
        mask: Which positions are no padding, `(batch, length)` bool.
        task: What the outputs mean.
        features: `(batch, …)`, or None where they were not read.
    """
    if task.per_position or (features is not None and fits_positions(mask, features)):
        return mask
    return None


def all_parts(each: Tensor, kept: int) -> Tensor:
    """Whether all parts of an example hold, over the dimensions behind the first `kept`."""
    return each.flatten(kept).all(kept) if each.dim() > kept else each


def no_distillation(task: Task) -> ArgumentError:
    """The error of a task that does not say what a teacher teaches."""
    return ArgumentError(
        "objective",
        expected="a task that defines what the teacher teaches",
        got=f"Distillation with the task {task.name!r}",
        remedy=f"Distil in {', '.join(get_args(TaskName))}, or in a class of your own that derives from one of these.",
    )
