"""Tasks: what outputs and labels mean. Every question about an answer is asked here.

A task tells the loss of an answer, what is predicted, when two predictions are the same, whether one is right, and how
sure the head is of it. Policies, scores, risks and plots ask the task object; none of them knows a task by its name.

A class label of −100 is none, as in PyTorch: what has it counts for nothing, in the loss and in its gradient. (A number
of −100 is a number; and of a text a teacher teaches every position that is no padding, see `Task.distillation_losses`.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from inspect import signature
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ponder._utils.numerics import at_least_float32, weighted
from ponder._utils.validation import check_flag, check_real
from ponder.errors import ArgumentError, ArgumentTypeError

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

TaskName = Literal["classification", "regression", "multilabel", "token_classification", "span"]
LossFunction = Callable[[Tensor, Tensor], Tensor]
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
    """Whether `losses` may be called once with the rows of all steps: it looks at each row alone."""
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
        return _all_parts(equal if counted is None else equal | ~counted, 1)

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
        return _all_parts(equal if counted is None else equal | ~counted, 2)

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Whether the prediction of each step is right in every part, `(batch, steps)` bool."""
        return _all_parts(self.predictions(outputs) == labels.unsqueeze(1), 2)

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
            mask: Which positions of a row are no padding, `(rows, length)` bool, where it has an answer at each: these
                are taught, whether they have a label or not, since policies compare the answers of all. None for all.
        """
        raise _no_distillation(self)

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


class _Smoothable(Task):
    """A task of classes, whose labels may be smoothed; see `Classification`."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        check_real("label_smoothing", label_smoothing, 0.0, 1.0, open_high=True)
        self.label_smoothing = float(label_smoothing)

    def smoothed(self, label_smoothing: float) -> Task:
        made = copy(self)  # with all that a subclass adds
        _Smoothable.__init__(made, label_smoothing)
        return made


class Classification(_Smoothable):
    """One class out of C: cross-entropy; outputs `(batch, classes)`, labels `(batch,)` long.

    Soft labels are probabilities of the classes, `(batch, classes)` floats that sum to 1.

    Args:
        label_smoothing: Share ε in [0, 1) of the labels' mass that is spread over all classes alike, in the loss of
            every step (Szegedy et al. 2016, "Rethinking the Inception Architecture", Section 7).
        weight: A number > 0 for each class, by which the loss of a row of that class is multiplied, smoothed or not, at
            every step; a soft label is so much of each class. PyTorch's own weighs the smoothing by class instead: all
            rows would then learn the heavy class. The mean over rows is taken as ever, where PyTorch's would be divided
            by the weights of the batch: weights of about 1 keep the rate of learning. Training alone asks for them, and
            they are not saved with a model.

    Example:
        >>> task = Classification(label_smoothing=0.1)
        >>> task.losses(torch.zeros(1, 4), torch.tensor([2]))
        tensor([1.3863])
    """

    name = "classification"
    each_row_alone = True
    classes = True
    weight: tuple[float, ...] | None = None

    def __init__(self, label_smoothing: float = 0.0, weight: Sequence[float] | None = None) -> None:
        super().__init__(label_smoothing)
        if weight is not None:
            listed: Any = weight.tolist() if hasattr(weight, "tolist") else weight  # of a tensor or an array
            if not isinstance(listed, Sequence) or isinstance(listed, str):
                raise ArgumentTypeError(
                    "weight",
                    expected="a number for each class, in the order of the classes",
                    got=type(weight).__name__,
                    remedy="Pass a tuple, a list or a tensor: weight=(1.0, 3.0), say.",
                )
            for each in listed:
                check_real("weight", each, open_low=True)
            self.weight = tuple(float(each) for each in listed)

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs, weights = at_least_float32(outputs), None
        if self.weight is not None:
            of_class = outputs.new_tensor(self.weight)
            if labels.is_floating_point():
                shares = labels * of_class
                weights = shares.sum(-1)
                labels = shares / weights.unsqueeze(-1)
            else:
                weights = of_class[labels.clamp(min=0)]
        losses = F.cross_entropy(outputs, labels, reduction="none", label_smoothing=self.label_smoothing)
        return losses if weights is None else losses * weights

    def labelled(self, labels: Tensor) -> Tensor | None:
        return None if labels.is_floating_point() else labels != IGNORED_LABEL

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.dim() != 2 or outputs.shape[-1] < 2:
            raise _wrong_outputs("(batch, classes) with at least 2 classes", outputs, "Use task='regression'?")
        if self.weight is not None and len(self.weight) != outputs.shape[-1]:
            raise ArgumentError(
                "weight",
                expected=f"a number for each of the {outputs.shape[-1]} classes",
                got=f"{len(self.weight)} numbers",
                remedy="Name the weights of all classes, in their order.",
            )
        if labels.is_floating_point() and labels.shape == outputs.shape:
            return _checked_probabilities(labels.to(at_least_float32(outputs).dtype))
        _check_shape(labels, outputs.shape[:1])
        _check_integer(labels)
        _check_range(labels, outputs.shape[-1])
        return labels.long()

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        check_labelled(self, labels)
        return super().correct(outputs, hard_labels(labels))

    def confidences(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        hard = hard_labels(labels)
        probability, right = super().confidences(outputs, hard)
        return probability[hard != IGNORED_LABEL], right[hard != IGNORED_LABEL]

    def distillation_losses(
        self, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        return _divergence(student, teacher, temperature, dim=-1)


class Unnamed(Classification):
    """The task of a model that names none: classes, as far as nothing says otherwise (see `infer_task` for losses)."""

    name = "unnamed"

    def predictions(self, outputs: Tensor) -> Tensor:
        if not outputs.dim() or outputs.shape[-1] < 2:
            raise ArgumentError(
                "outputs",
                expected="class logits, the last dimension at least 2",
                got=f"shape {tuple(outputs.shape)} of a model that names no task",
                remedy="Build the model with task='regression' if it answers with one number.",
            )
        return super().predictions(outputs)


class Regression(Task):
    """Real numbers: squared error, averaged over the numbers of an example; outputs and labels alike.

    Example:
        >>> Regression().losses(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]]))
        tensor([0., 4.])
    """

    name = "regression"
    each_row_alone = True
    numbers = True
    comparable = False
    metric = "negative_squared_error"

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        error = (at_least_float32(outputs).reshape(labels.shape) - labels) ** 2
        return error.flatten(1).mean(1) if error.dim() > 1 else error

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if labels.is_complex():
            raise _wrong_label_type("real numbers", labels)
        single = outputs.dim() == 2 and outputs.shape[-1] == 1
        if labels.shape != outputs.shape and not (single and labels.shape == outputs.shape[:1]):
            _check_shape(labels, outputs.shape[:1] if single else outputs.shape)
        labels = labels.to(at_least_float32(outputs).dtype)
        _check_finite(labels)
        return labels

    def predictions(self, outputs: Tensor) -> Tensor:
        return at_least_float32(outputs)

    def scores(self, outputs: Tensor, labels: Tensor) -> Tensor:
        given = self.predictions(outputs).double()
        error = (given - labels.reshape(labels.shape[0], 1, *given.shape[2:]).double()) ** 2
        return -(error.flatten(2).mean(2) if error.dim() > 2 else error)

    def distillation_losses(
        self, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        return self.losses(student, at_least_float32(teacher))


class Multilabel(_Smoothable):
    """Any subset of C labels: binary cross-entropy, averaged over labels; outputs and labels `(batch, labels)`.

    Labels are 1 or 0, probabilities in between, or −100 where it is not known whether one applies.

    Args:
        label_smoothing: Share ε in [0, 1): 1 becomes 1 − ε / 2, and 0 becomes ε / 2.

    Example:
        >>> Multilabel().predictions(torch.tensor([[2.0, -1.0, 0.5]]))
        tensor([[ True, False,  True]])
    """

    name = "multilabel"
    each_row_alone = True
    several_answers = True

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        known = labels != IGNORED_LABEL
        target = torch.where(known, labels * (1.0 - self.label_smoothing) + self.label_smoothing / 2.0, 0.0)
        each = F.binary_cross_entropy_with_logits(at_least_float32(outputs), target, reduction="none")
        return torch.where(known, each, 0.0).sum(-1) / known.sum(-1).clamp(min=1)

    def labelled(self, labels: Tensor) -> Tensor | None:
        return (labels != IGNORED_LABEL).any(-1)

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.dim() != 2:
            raise _wrong_outputs("(batch, labels)", outputs, "Give the head one output per label.")
        _check_shape(labels, outputs.shape)
        labels = labels.to(at_least_float32(outputs).dtype)
        if labels.numel() and not bool((((labels >= 0) & (labels <= 1)) | (labels == IGNORED_LABEL)).all()):
            raise ArgumentError(
                "labels",
                expected=f"0 or 1 (or in between; {IGNORED_LABEL} where it is not known)",
                got=labels,
                remedy="Encode them so.",
            )
        return labels

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs > 0

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        check_labelled(self, labels)
        right = self.predictions(outputs) == (labels.unsqueeze(1) > 0.5)
        return _all_parts(right | (labels.unsqueeze(1) == IGNORED_LABEL), 2)

    def confidences(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        right = self.predictions(outputs) == (labels.unsqueeze(1) > 0.5)
        probability, known = at_least_float32(outputs).abs().sigmoid(), labels != IGNORED_LABEL
        return probability.movedim(1, -1)[known], right.movedim(1, -1)[known]

    def distillation_losses(
        self, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        target = torch.sigmoid(at_least_float32(teacher) / temperature)
        each = F.binary_cross_entropy_with_logits(at_least_float32(student) / temperature, target, reduction="none")
        return temperature**2 * each.mean(-1)


class TokenClassification(_Smoothable):
    """A class per position: mean cross-entropy over the positions whose label is not −100.

    Outputs `(batch, length, classes)`, labels `(batch, length)` long.

    Args:
        label_smoothing: Share of the labels' mass that is spread over all classes alike, as for `Classification`.

    Example:
        >>> TokenClassification().losses(torch.zeros(1, 3, 2), torch.tensor([[0, 1, -100]]))  # the last is padding
        tensor([0.6931])
    """

    name = "token_classification"
    each_row_alone = True
    classes = True
    per_token = True

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        per_token = F.cross_entropy(
            at_least_float32(outputs).transpose(1, 2),
            labels,
            reduction="none",
            ignore_index=IGNORED_LABEL,
            label_smoothing=self.label_smoothing,
        )
        return per_token.sum(1) / (labels != IGNORED_LABEL).sum(1).clamp(min=1)

    def labelled(self, labels: Tensor) -> Tensor | None:
        return (labels != IGNORED_LABEL).any(1)

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.dim() != 3 or outputs.shape[-1] < 2:
            raise _wrong_outputs("(batch, length, classes)", outputs, "Use a readout that keeps positions.")
        _check_shape(labels, outputs.shape[:2])
        _check_integer(labels)
        _check_range(labels, outputs.shape[-1])
        return labels.long()

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return _right_where_known(self, outputs, labels)

    def confidences(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        probability, right = super().confidences(outputs, labels)
        known = labels != IGNORED_LABEL
        return probability.movedim(1, -1)[known], right.movedim(1, -1)[known]

    def distillation_losses(
        self, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        taught = self._counted(mask, student)
        if taught is None:
            return _divergence(student, teacher, temperature, dim=-1).mean(1)
        student, teacher = (outputs.masked_fill(~taught, 0.0) for outputs in (student, teacher))
        per_token = _divergence(student, teacher, temperature, dim=-1)  # 0 where both are 0, whatever stood there
        return per_token.sum(1) / taught.flatten(1).sum(1).clamp(min=1)


class Span(Task):
    """Where an answer starts and ends in a sequence: the mean of two cross-entropies over its positions.

    Outputs `(batch, length, 2)`, labels `(batch, 2)` long: the first and the last position. A position of −100, or
    beyond the sequence (the answer was cut off), counts for nothing.

    Example:
        >>> Span().predictions(torch.tensor([[[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]]))  # it starts at 1 and ends at 2
        tensor([[1, 2]])
    """

    name = "span"
    each_row_alone = True
    per_position = True
    blank = -1e4  # no answer starts or ends there

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        each = F.cross_entropy(at_least_float32(outputs), labels, reduction="none", ignore_index=IGNORED_LABEL)
        return each.mean(1)

    def labelled(self, labels: Tensor) -> Tensor | None:
        return (labels != IGNORED_LABEL).any(1)

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.dim() != 3 or outputs.shape[-1] != 2:
            raise _wrong_outputs("(batch, length, 2)", outputs, "Use a readout that keeps positions, and two outputs.")
        _check_shape(labels, torch.Size((outputs.shape[0], 2)))
        _check_integer(labels)
        return self.within(labels, outputs.shape[1])

    @staticmethod
    def within(labels: Tensor, length: int) -> Tensor:
        """Labels whose positions beyond a sequence of that length are none."""
        return torch.where((labels >= 0) & (labels < length), labels.long(), IGNORED_LABEL)

    def without_padding(self, outputs: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None or not fits_positions(mask, outputs, dim=outputs.dim() - 2):
            return outputs
        beyond = ~mask.view(mask.shape[0], *[1] * (outputs.dim() - 3), mask.shape[1], 1)
        return outputs.masked_fill(beyond, self.blank)

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-2)

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return _right_where_known(self, outputs, labels)

    def confidences(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        probability = at_least_float32(outputs).softmax(-2).amax(-2)
        right, known = self.predictions(outputs) == labels.unsqueeze(1), labels != IGNORED_LABEL
        return probability.movedim(1, -1)[known], right.movedim(1, -1)[known]

    def distillation_losses(
        self, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        return _divergence(student, teacher, temperature, dim=-2).mean(-1)


class Custom(Task):
    """A user's own loss, `function(outputs, labels) -> (batch,)`, called once a step.

    Args:
        function: The loss; None where it is not known any more, as in a trajectory that was read from a file.
        classes: Whether outputs are the logits of classes, which policies on probabilities read, or numbers. Where
            None, as for a bare function, they are taken for classes, and such a policy warns.

    Example:
        >>> task = Custom(lambda outputs, labels: (outputs - labels).abs().mean(-1), classes=False)
        >>> task.predictions(torch.tensor([[0.5, 2.0]]))  # numbers, and no class
        tensor([[0.5000, 2.0000]])
    """

    name = "custom"
    classes = True
    comparable = False
    metric = None

    def __init__(self, function: LossFunction | None = None, classes: bool | None = None) -> None:
        self.function = function
        above = type(self).__mro__[: type(self).__mro__.index(Custom)]
        self.supposed = classes is None and not any("classes" in vars(kind) for kind in above)
        if classes is not None:
            check_flag("classes", classes)
            self.classes, self.numbers = classes, not classes  # type: ignore[misc]  # said of this one alone

    def predictions(self, outputs: Tensor) -> Tensor:
        return at_least_float32(outputs) if self.numbers else super().predictions(outputs)

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if self.function is None:
            raise ArgumentError(
                "task",
                expected="the callable (outputs, labels) -> losses (batch,) of the model",
                got="a custom task whose callable is not known here",
                remedy="Ask the model that was trained with it.",
            )
        losses = self.function(outputs, labels)
        if not isinstance(losses, Tensor) or losses.shape != outputs.shape[:1]:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ArgumentError(
                "task",
                expected=f"a callable that gives one loss per example, ({outputs.shape[0]},)",
                got=got,
                remedy="Do not reduce over the batch: use reduction='none' and average what belongs to one example.",
            )
        return losses

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if labels.shape[:1] != outputs.shape[:1]:
            _check_shape(labels, outputs.shape[:1])
        return labels


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


def kind_of(task: Task) -> str | None:
    """The name of the task of this library that a task is or derives from; None for any other.

    Example:
        >>> from ponder.parts.tasks import kind_of
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
        >>> from ponder.parts.tasks import answers_otherwise
        >>> class Focal(ponder.tasks.Classification):
        ...     def losses(self, outputs, labels):
        ...         return super().losses(outputs, labels) ** 2
        >>> class Screening(ponder.tasks.Classification):
        ...     def predictions(self, outputs):
        ...         return (outputs.softmax(-1)[..., 1] > 0.9).long()
        >>> answers_otherwise(Focal()), answers_otherwise(Screening())
        (False, True)
    """
    own = type(task_named(task.name))
    if own is Custom:
        return False
    return not isinstance(task, own) or any(getattr(type(task), name) != getattr(own, name) for name in _ANSWERS)


_ANSWERS = (
    *("agreement", "answered", "classes", "comparable", "confidences", "correct", "distance", "fits", "labelled"),
    *("metric", "numbers", "per_position", "per_token", "predictions", "same", "scores", "without_padding"),
)
"""What of a task decides what outputs answer, and whether that is right."""


def infer_task(outputs: Tensor, labels: Tensor) -> Task:
    """The task of a model that names none: integer labels are classes, all others are numbers.

    Example:
        >>> infer_task(torch.zeros(2, 3), torch.tensor([0, 2])).name, infer_task(torch.zeros(2, 1), torch.zeros(2)).name
        ('classification', 'regression')
    """
    if labels.is_floating_point() or outputs.shape[-1] == 1:
        return _TASKS["regression"]
    return _TASKS["token_classification" if outputs.dim() == 3 else "classification"]


def fits_positions(mask: Tensor | None, tensor: Tensor, dim: int = 1) -> bool:
    """Whether a mask tells the positions in a dimension: where a stem makes others of them, nobody knows padding.

    Args:
        mask: `(batch, length)`, or None.
        tensor: Batch first, of at least three dimensions where it has positions.
        dim: The dimension.
    """
    return mask is not None and tensor.dim() > 2 and mask.shape[1] == tensor.shape[dim]


def check_distils(task: Task) -> None:
    """Refuse a task that does not define what a teacher teaches."""
    if type(task).distillation_losses is Task.distillation_losses:
        raise _no_distillation(task)
    taken = signature(task.distillation_losses).parameters
    if task.per_token and not any(one.name == "mask" or one.kind is one.VAR_KEYWORD for one in taken.values()):
        raise ArgumentError(
            "task",
            expected="distillation_losses(student, teacher, temperature, mask=None) of a task of tokens",
            got=f"the arguments {', '.join(taken)}",
            remedy="Take mask, (batch, length) bool: the positions to be taught.",
        )


def check_labelled(task: Task, labels: Tensor) -> None:
    """Refuse rows without a label where rows are counted as right or wrong: they are neither.

    Args:
        task: What the labels mean.
        labels: Labels, batch first; those of padding are ignored ones.
    """
    labelled = task.labelled(labels)
    if labelled is not None and not bool(labelled.all()):
        raise ArgumentError(
            "labels",
            expected="a label for every row, where rows are counted as right or wrong",
            got=f"{IGNORED_LABEL} for {int((~labelled).sum())} of {len(labelled)} rows",
            remedy="Record the rows that have a label.",
        )


def labelled_part(task: Task, outputs: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The outputs, at least float32, and the labels of the rows that have one; with an answer a token, of the tokens.

    Args:
        task: What they mean.
        outputs: Outputs of one step, `(batch, …)`.
        labels: Checked labels, batch first.
        mask: Which positions count, `(batch, length)` bool; None for all.

    Example:
        >>> from ponder.parts.tasks import labelled_part
        >>> labelled_part(task_named("classification"), torch.eye(3), torch.tensor([2, -100, 0]), None)
        (tensor([[1., 0., 0.],
                [0., 0., 1.]]), tensor([2, 0]))
    """
    outputs = at_least_float32(task.without_padding(outputs, mask))
    if not task.per_token:
        kept = task.labelled(labels)
        return (outputs, labels) if kept is None else (outputs[kept], labels[kept])
    kept = labels != IGNORED_LABEL
    if mask is not None and fits_positions(mask, outputs):
        kept = kept & mask
    return outputs[kept], labels[kept]


def hard_labels(labels: Tensor) -> Tensor:
    """Classes, of labels that may be probabilities of classes.

    Example:
        >>> hard_labels(torch.tensor([[0.1, 0.9], [0.8, 0.2]]))
        tensor([1, 0])
    """
    return labels.argmax(-1) if labels.is_floating_point() else labels


def _right_where_known(task: Task, outputs: Tensor, labels: Tensor) -> Tensor:
    """Whether each step is right in every part that has a label, `(batch, steps)` bool; a row has at least one."""
    check_labelled(task, labels)
    right = task.predictions(outputs) == labels.unsqueeze(1)
    return _all_parts(right | (labels.unsqueeze(1) == IGNORED_LABEL), 2)


def _divergence(student: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    """T² KL(teacher ‖ student) of logits over a dimension, which is gone from what is given."""
    log_student = F.log_softmax(at_least_float32(student) / temperature, dim=dim)
    log_teacher = F.log_softmax(at_least_float32(teacher) / temperature, dim=dim)
    divergence = weighted(log_teacher.exp(), log_teacher - log_student)  # a class of logit −inf is not taught
    return temperature**2 * divergence.sum(dim)


def _all_parts(each: Tensor, kept: int) -> Tensor:
    """Whether all parts of an example hold, over the dimensions behind the first `kept`."""
    return each.flatten(kept).all(kept) if each.dim() > kept else each


def _check_shape(labels: Tensor, shape: torch.Size) -> None:
    if labels.shape != shape:
        raise ArgumentError(
            "labels",
            expected=f"shape {tuple(shape)}",
            got=f"shape {tuple(labels.shape)}",
            remedy="Reshape them.",
        )


def _check_integer(labels: Tensor) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise _wrong_label_type("integers (class indices)", labels)


def _checked_probabilities(labels: Tensor) -> Tensor:
    """Soft labels, or an error where they are no probabilities (to a hundredth, since many are kept in half)."""
    if labels.numel() and not bool(((labels >= 0).all(-1) & ((labels.sum(-1) - 1.0).abs() < 0.01)).all()):
        raise ArgumentError(
            "labels",
            expected="probabilities of the classes that sum to 1, in floating-point labels (batch, classes)",
            got=f"values between {float(labels.min()):g} and {float(labels.max()):g}, or other sums",
            remedy="Pass logits.softmax(-1), say, or name the task: task='multilabel' or task='regression'.",
        )
    return labels


def _check_range(labels: Tensor, classes: int) -> None:
    """Refuse what is neither a class nor the ignored label."""
    if not labels.numel() or torch._C._functorch.is_functorch_wrapped_tensor(labels):
        return
    counted = torch.where(labels == IGNORED_LABEL, torch.zeros_like(labels), labels)
    low, high = torch.stack(counted.aminmax()).tolist()
    if low < 0 or high >= classes:
        raise ArgumentError(
            "labels",
            expected=f"classes 0 … {classes - 1}, since the head has {classes} outputs, or {IGNORED_LABEL} for none",
            got=f"values between {low} and {high}",
            remedy="Give the head one output per class, or map the labels to 0, 1, ….",
        )


def _has_values(labels: Tensor) -> bool:
    """Whether values can be looked at: not while a call is traced, without memory, or for each row by `torch.func`."""
    if torch.compiler.is_compiling() or labels.is_meta or isinstance(labels, FakeTensor):
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(labels)


def _check_finite(labels: Tensor) -> None:
    """Refuse numbers that are none: one of them would make all weights NaN."""
    if not _has_values(labels) or bool(labels.isfinite().all()):
        return
    rows = (~labels.isfinite()).reshape(len(labels), -1).any(1)
    raise ArgumentError(
        "labels",
        expected="finite numbers",
        got=f"NaN or infinity in {int(rows.sum())} of {len(rows)} rows",
        remedy="Leave those rows out: a number that is not known cannot be taught.",
    )


def _no_distillation(task: Task) -> ArgumentError:
    return ArgumentError(
        "objective",
        expected="a task that defines what the teacher teaches",
        got=f"Distillation with the task {task.name!r}",
        remedy=f"Distil in {', '.join(_TASKS)}, or in a class of your own that derives from one of these tasks.",
    )


def _wrong_label_type(expected: str, labels: Tensor) -> ArgumentTypeError:
    return ArgumentTypeError(
        "labels", expected=expected, got=str(labels.dtype), remedy="Convert them, or name another task."
    )


def _wrong_outputs(expected: str, outputs: Tensor, remedy: str) -> ArgumentError:
    return ArgumentError("outputs of the head", expected=expected, got=f"shape {tuple(outputs.shape)}", remedy=remedy)
