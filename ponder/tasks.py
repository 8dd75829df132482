"""Tasks: the meaning of outputs and labels.

A task computes the loss of an answer, what it predicts, whether two predictions are the same, and
whether one is right. Policies, scores, risks and plots call these methods; none of them depends on
the name of a task.

A class label of −100 means no label, as in PyTorch: its row or token does not count in the loss
and its gradient. Methods on predictions take NumPy arrays as well as tensors (a cascade has no
PyTorch); losses take tensors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from ponder._utils.arrays import at_least_float32, namespace, weighted
from ponder._utils.checks import check_real
from ponder.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "IGNORED_LABEL",
    "Classification",
    "Custom",
    "Multilabel",
    "Regression",
    "Span",
    "Task",
    "TaskName",
    "TokenClassification",
    "as_task",
    "fits_positions",
    "infer_task",
    "task_named",
]

TaskName = Literal["classification", "regression", "multilabel", "token_classification", "span"]
Array: TypeAlias = Any
"""A tensor, or an array of NumPy."""
Mask: TypeAlias = Any
"""The positions that are not padding, `(batch, length)` bool; None for all."""
IGNORED_LABEL = -100


class Task(ABC):
    """Meaning of the outputs of a head.

    Outputs of one step are `(batch, …)`; a method that takes those of all steps, `(batch, steps,
    …)`, says so. A `mask`, `(batch, length)` bool, marks the positions that are not padding; None
    marks all.

    Example:
        >>> task = ponder.tasks.task_named("classification")
        >>> task.losses(torch.zeros(2, 3), torch.tensor([0, 2]))  # a loss for each row
        tensor([1.0986, 1.0986])
        >>> task.predictions(torch.tensor([[0.1, 0.9, 0.0]]))
        tensor([1])
    """

    name: ClassVar[str]
    each_row_alone: ClassVar[bool] = True
    """Whether `losses` treats each row alone, so that one call may take the rows of all steps."""
    classes: bool = False
    """Whether the last dimension of the outputs holds logits, of which one class is predicted."""
    numbers: bool = False
    """Whether predictions are numbers, which are the same only within a tolerance."""
    comparable: ClassVar[bool] = True
    """Whether predictions are the same or not, and right or wrong, with nothing in between."""
    per_token: ClassVar[bool] = False
    """Whether an example has an answer at each of its positions."""
    per_position: ClassVar[bool] = False
    """Whether outputs are `(batch, length, …)`, for an answer or a choice among positions."""
    blank: ClassVar[float] = 0.0
    """The value of outputs beyond the end of a row, if they have positions."""
    metric: ClassVar[str | None] = "accuracy"
    """Name of the task's score, the mean over rows of `scores`; None if it has no score.

    It is ``"exact_match"`` if an example has several answers, one a token or a label, which must
    all be right.
    """

    @property
    def one_class(self) -> bool:
        """Whether the answer of an example is one class, which is right or wrong."""
        return self.classes and self.comparable and not self.per_token

    @abstractmethod
    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return negative log-likelihoods, `(batch,)`, of checked labels under a step's outputs."""

    @abstractmethod
    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return labels in the shape and type that `losses` takes, or raise.

        `outputs` are those of one step.
        """

    def step_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the losses of outputs `(batch, steps, …)`, if possible in one call."""
        steps = outputs.shape[1]
        if self.each_row_alone:
            repeated = labels.repeat_interleave(steps, 0)
            losses: Tensor = self.losses(outputs.flatten(0, 1), repeated).unflatten(0, (-1, steps))
        else:
            losses = namespace(outputs).stack(
                [self.losses(each, labels) for each in outputs.unbind(1)], 1
            )
        return losses

    def mean_loss(self, losses: Tensor, labels: Tensor) -> Tensor:
        """Return the mean of losses, `(batch,)`, over the rows that have a label.

        It is 0 if no row has a label.
        """
        labelled = self.labelled(labels)
        mean: Tensor = losses.where(labelled, 0.0).sum() / labelled.sum().clamp(min=1)
        return mean

    def smoothed(self, label_smoothing: float) -> Task:
        """Return the same task with smoothed labels, see `Classification`."""
        expected = "0: only classes can be smoothed"
        got = f"{label_smoothing} with the task {self.name!r}"
        raise ArgumentError("label_smoothing", expected=expected, got=got, remedy="Leave it out.")

    def labelled(self, labels: Array) -> Array:
        """Return which rows have a label, `(batch,)` bool."""
        return _parts(self.targets(labels)[1], 1).any(-1)

    def targets(self, labels: Array) -> tuple[Array, Array]:
        """Return the predictions that labels ask for, and which of them are known."""
        return labels, (labels != IGNORED_LABEL) | (not self.comparable)

    def inside(self, labels: Array, mask: Mask) -> Array:
        """Return checked labels with those at padding ignored."""
        if not self.per_token or mask is None:
            return labels
        return namespace(labels).where(mask, labels, IGNORED_LABEL)

    def fits(self, outputs: Array) -> bool:
        """Return whether a step's outputs have the shape of class logits, if there are classes."""
        return not self.classes or (outputs.ndim == 2 + self.per_token and outputs.shape[-1] > 1)

    def answered(self, outputs: Array, mask: Mask = None) -> Array:
        """Return which rows have outputs without NaN at one step, `(batch,)` bool."""
        nan = outputs != outputs
        if mask is not None and self.per_position and fits_positions(mask, outputs):
            nan = _parts(nan, 2).any(-1) & mask
        return ~_parts(nan, 1).any(-1)

    def without_padding(self, outputs: Array, mask: Mask) -> Array:
        """Return outputs `(batch, [steps,] length, …)` that do not choose a position of padding."""
        return outputs

    def predictions(self, outputs: Array) -> Array:
        """Return the predictions of outputs `(…, outputs)`: numbers, or most probable classes."""
        if self.numbers:
            return at_least_float32(outputs)
        return outputs.argmax(-1)

    def same(self, one: Array, other: Array, *, tolerance: float = 0.0, mask: Mask = None) -> Array:
        """Return whether predictions `(batch, …)` are the same in every part, `(batch,)` bool.

        Args:
            one: Predictions.
            other: Predictions of the same rows.
            tolerance: Bound on the difference of equal numbers, for tasks of numbers.
            mask: The positions that count.
        """
        if self.numbers:
            equal = abs(one - other) < tolerance
        else:
            equal = one == other
        return self._holds(equal, mask, 1)

    def distance(self, one: Array, other: Array, *, mask: Mask = None) -> Array:
        """Return the distance of predictions `(batch, …)`, `(batch,)`; arguments as for `same`.

        The share of parts that differ, from 0 to 1; for tasks of numbers, the greatest difference.
        """
        xp = namespace(one)
        if self.numbers:
            apart = abs(one - other)
        else:
            apart = at_least_float32(one != other)
        counted = self._counted(mask, apart)
        if counted is not None:
            apart = xp.where(counted, apart, 0.0)
        if self.numbers:
            return xp.amax(_parts(apart, 1), -1)
        if counted is None:
            return _parts(apart, 1).mean(-1)
        counted = xp.broadcast_to(counted, apart.shape)
        return _parts(apart, 1).sum(-1) / _parts(counted, 1).sum(-1)

    def mean_outputs(self, outputs: Tensor, log_pmf: Tensor) -> Tensor:
        """Return the mean answer Σ_n p_n y_n of outputs `(batch, steps, …)`, `(batch, …)`.

        Numbers are averaged; of class logits the probabilities are, and the result is their
        logarithm, so that it is read like the outputs of a step.

        Args:
            outputs: Outputs of every step.
            log_pmf: Logarithms of the weights p, `(batch, steps)`.
        """
        weights = log_pmf.reshape(*log_pmf.shape, *[1] * (outputs.ndim - 2))
        if self.classes:
            log_mean: Tensor = (weights + at_least_float32(outputs).log_softmax(-1)).logsumexp(1)
            return log_mean
        if self.numbers:
            mean: Tensor = (weights.exp() * at_least_float32(outputs)).sum(1)
            return mean
        raise ArgumentError(
            "answer",
            expected="a task of classes or numbers, whose answers have a mean",
            got=f"the task {self.name!r}",
            remedy="Use answer='exit'.",
        )

    def agreement(self, outputs: Array, mask: Mask = None) -> Array:
        """Return whether the prediction of each step is that of the last, `(batch, steps)` bool."""
        predicted = self.predictions(outputs)
        return self._holds(predicted == predicted[:, -1:], mask, 2)

    def correct(self, outputs: Array, labels: Array) -> Array:
        """Return whether each step is right in every labelled part, `(batch, steps)` bool."""
        labelled = self.labelled(labels)
        answers, known = self.targets(labels)
        if not bool(labelled.all()):
            expected = "a label for every row, where rows are counted as right or wrong"
            got = f"{IGNORED_LABEL} for {int((~labelled).sum())} of {len(labelled)} rows"
            raise _wrong_labels(expected, got, "Record the rows that have a label.")
        right = self.predictions(outputs) == answers[:, None]
        return _parts(right | ~known[:, None], 2).all(-1)

    def scores(self, outputs: Array, labels: Array) -> Array:
        """Return values, `(batch, steps)` float64, whose mean over rows is the score `metric`."""
        return _double(self.correct(outputs, labels))

    def distillation_losses(
        self, student: Tensor, teacher: Tensor, temperature: float, mask: Mask = None
    ) -> Tensor:
        """Return losses, `(rows,)`, of outputs against the teacher's outputs of the same rows.

        Args:
            student: Outputs, `(rows, …)`.
            teacher: The teacher's outputs.
            temperature: Divisor of both, if they are logits.
            mask: The positions that are taught, labelled or not, since policies compare the answers
                of all.
        """
        remedy = "Distil with a named task, or with a class of your own that derives from one."
        raise ArgumentError(
            "task",
            expected="one that defines distillation_losses",
            got=repr(self.name),
            remedy=remedy,
        )

    def _holds(self, parts: Array, mask: Mask, dim: int) -> Array:
        """Return whether all parts that count are true, in the dimensions before `dim`."""
        counted = self._counted(mask, parts, dim)
        if counted is not None:
            parts = parts | ~counted
        return _parts(parts, dim).all(-1)

    def _counted(self, mask: Mask, parts: Array, dim: int = 1) -> Array | None:
        """Return which parts of predictions count, broadcastable to `parts`.

        Positions are in dimension `dim`.
        """
        if mask is None or not self.per_token or mask.shape[1] != parts.shape[dim]:
            return None  # a stem that makes other positions: their padding is not known
        return mask.reshape(
            mask.shape[0], *[1] * (dim - 1), mask.shape[1], *[1] * (parts.ndim - dim - 1)
        )


class _Smoothable(Task):
    """Base of the tasks of classes and labels, whose labels can be smoothed."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        check_real("label_smoothing", label_smoothing, 0.0, 1.0, open_high=True)
        self.label_smoothing = label_smoothing

    def smoothed(self, label_smoothing: float) -> Task:
        smoothed = copy(self)
        _Smoothable.__init__(smoothed, label_smoothing)
        return smoothed

    def distillation_losses(
        self, student: Tensor, teacher: Tensor, temperature: float, mask: Mask = None
    ) -> Tensor:
        taught = self._counted(mask, student)
        if taught is not None:
            # Padding may hold NaN.
            student = student.masked_fill(~taught, 0.0)
            teacher = teacher.masked_fill(~taught, 0.0)
        losses: Tensor = _parts(_divergence(student, teacher, temperature, dim=-1), 1)
        if taught is None:
            return losses.mean(1)
        counts: Tensor = taught.flatten(1).sum(1)
        return losses.sum(1) / counts.clamp(min=1)


class Classification(_Smoothable):
    """One class out of C: cross-entropy; outputs `(batch, classes)`, labels `(batch,)` long.

    Args:
        label_smoothing: Share ε in [0, 1) of the labels' mass that is spread over all classes
            alike, in the loss of every step (Szegedy et al. 2016, "Rethinking the Inception
            Architecture", Section 7).

    Example:
        >>> task = ponder.tasks.Classification(label_smoothing=0.1)
        >>> task.losses(torch.zeros(1, 4), torch.tensor([2]))
        tensor([1.3863])
    """

    name = "classification"
    classes = True

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return _cross_entropy(
            at_least_float32(outputs), labels, label_smoothing=self.label_smoothing
        )

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.ndim != 2 or outputs.shape[-1] < 2:
            raise _wrong_outputs(
                "(batch, classes) with at least 2 classes", outputs, "Use task='regression'?"
            )
        return _as_classes(labels, outputs.shape[:1], outputs.shape[-1])


class TokenClassification(_Smoothable):
    """A class per position: mean cross-entropy over the positions whose label is not −100.

    Outputs `(batch, length, classes)`, labels `(batch, length)` long.

    Args:
        label_smoothing: As for `Classification`.

    Example:
        >>> task = ponder.tasks.TokenClassification()
        >>> task.losses(torch.zeros(1, 3, 2), torch.tensor([[0, 1, -100]]))  # the last is padding
        tensor([0.6931])
    """

    name = "token_classification"
    classes = True
    per_token = per_position = True
    metric = "exact_match"

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs = at_least_float32(outputs).transpose(1, 2)
        each = _cross_entropy(outputs, labels, label_smoothing=self.label_smoothing)
        return each.sum(1) / (labels != IGNORED_LABEL).sum(1).clamp(min=1)

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.ndim != 3 or outputs.shape[-1] < 2:
            raise _wrong_outputs(
                "(batch, length, classes)", outputs, "Use a readout that keeps positions."
            )
        return _as_classes(labels, outputs.shape[:2], outputs.shape[-1])


class Multilabel(_Smoothable):
    """Any subset of C labels: binary cross-entropy, averaged over labels.

    Outputs and labels `(batch, labels)`.

    Labels are 1 or 0, probabilities in between, or −100 if it is not known whether one applies.

    Args:
        label_smoothing: Share ε in [0, 1): 1 becomes 1 − ε / 2, and 0 becomes ε / 2.

    Example:
        >>> ponder.tasks.Multilabel().predictions(torch.tensor([[2.0, -1.0, 0.5]]))
        tensor([[ True, False,  True]])
    """

    name = "multilabel"
    metric = "exact_match"

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        known = labels != IGNORED_LABEL
        xp = namespace(outputs)
        target = xp.where(
            known, labels * (1.0 - self.label_smoothing) + self.label_smoothing / 2.0, 0.0
        )
        each: Tensor = xp.where(
            known, _binary_cross_entropy(at_least_float32(outputs), target), 0.0
        )
        return each.sum(-1) / known.sum(-1).clamp(min=1)

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.ndim != 2:
            raise _wrong_outputs("(batch, labels)", outputs, "Give the head one output per label.")
        _check_shape(labels, outputs.shape)
        labels = labels.to(at_least_float32(outputs).dtype)
        if not bool((((labels >= 0) & (labels <= 1)) | (labels == IGNORED_LABEL)).all()):
            expected = f"0 or 1 (or in between; {IGNORED_LABEL} where it is not known)"
            raise _wrong_labels(expected, labels, "Encode them so, or name another task.")
        return labels

    def predictions(self, outputs: Array) -> Array:
        return outputs > 0

    def targets(self, labels: Array) -> tuple[Array, Array]:
        return labels > 0.5, labels != IGNORED_LABEL

    def distillation_losses(
        self, student: Tensor, teacher: Tensor, temperature: float, mask: Mask = None
    ) -> Tensor:
        student = at_least_float32(student) / temperature
        teacher = at_least_float32(teacher) / temperature
        return temperature**2 * _binary_cross_entropy(student, teacher.sigmoid()).mean(-1)


class Regression(Task):
    """Real numbers: squared error, averaged over the numbers of an example.

    Outputs and labels have one shape.

    Example:
        >>> outputs, labels = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]])
        >>> ponder.tasks.Regression().losses(outputs, labels)
        tensor([0., 4.])
    """

    name = "regression"
    numbers = True
    comparable = False
    metric = "negative_squared_error"

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        errors: Tensor = _parts((at_least_float32(outputs).reshape(labels.shape) - labels) ** 2, 1)
        return errors.mean(1)

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        # A head of one output answers labels (batch,) as well as (batch, 1).
        is_single = outputs.ndim == 2 and outputs.shape[-1] == 1
        if is_single and labels.shape != outputs.shape:
            _check_shape(labels, outputs.shape[:1])
        elif not is_single:
            _check_shape(labels, outputs.shape)
        labels = labels.to(at_least_float32(outputs).dtype)
        if not bool(labels.isfinite().all()):
            raise _wrong_labels("finite numbers", "NaN or infinity", "Leave those rows out.")
        return labels

    def scores(self, outputs: Array, labels: Array) -> Array:
        numbers = _double(outputs)
        wanted = _double(labels).reshape(labels.shape[0], 1, *numbers.shape[2:])
        error = (numbers - wanted) ** 2
        return -_parts(error, 2).mean(-1)

    def distillation_losses(
        self, student: Tensor, teacher: Tensor, temperature: float, mask: Mask = None
    ) -> Tensor:
        return self.losses(student, at_least_float32(teacher))


class Span(Task):
    """Start and end of an answer in a sequence: the mean of two cross-entropies over its positions.

    Outputs `(batch, length, 2)`, labels `(batch, 2)` long: the first and the last position. A
    position of −100, or beyond the sequence (the answer was cut off), does not count.

    Example:
        >>> outputs = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]])
        >>> ponder.tasks.Span().predictions(outputs)  # from 1 to 2
        tensor([[1, 2]])
    """

    name = "span"
    per_position = True
    blank = -1e4  # no answer starts or ends there

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return _cross_entropy(at_least_float32(outputs), labels).mean(1)

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.ndim != 3 or outputs.shape[-1] != 2:
            raise _wrong_outputs(
                "(batch, length, 2)",
                outputs,
                "Use a readout that keeps positions, and two outputs.",
            )
        labels = _as_classes(labels, (outputs.shape[0], 2), None)
        return labels.masked_fill((labels < 0) | (labels >= outputs.shape[1]), IGNORED_LABEL)

    def inside(self, labels: Array, mask: Mask) -> Array:
        if mask is None:
            return labels
        xp = namespace(labels)
        known = (labels >= 0) & (labels < mask.shape[1])
        rows = xp.arange(labels.shape[0])[:, None]
        return xp.where(known & ~mask[rows, xp.where(known, labels, 0)], IGNORED_LABEL, labels)

    def without_padding(self, outputs: Array, mask: Mask) -> Array:
        if mask is None or not fits_positions(mask, outputs, dim=outputs.ndim - 2):
            return outputs
        real = mask.reshape(mask.shape[0], *[1] * (outputs.ndim - 3), mask.shape[1], 1)
        return namespace(outputs).where(real, outputs, self.blank)

    def predictions(self, outputs: Array) -> Array:
        return outputs.argmax(-2)

    def distillation_losses(
        self, student: Tensor, teacher: Tensor, temperature: float, mask: Mask = None
    ) -> Tensor:
        student, teacher = (self.without_padding(outputs, mask) for outputs in (student, teacher))
        return _divergence(student, teacher, temperature, dim=-2).mean(-1)


class Custom(Task):
    """A loss of the user's, `function(outputs, labels) -> (batch,)`, called once a step.

    Args:
        function: The loss; None in a trajectory that was read from a file.
        classes: Whether outputs are the logits of classes, or numbers.

    Example:
        >>> def absolute(outputs, labels):
        ...     return (outputs - labels).abs().mean(-1)
        >>> task = ponder.tasks.Custom(absolute, classes=False)
        >>> task.predictions(torch.tensor([[0.5, 2.0]]))  # numbers, and no class
        tensor([[0.5000, 2.0000]])
    """

    name = "custom"
    each_row_alone = False  # a loss may compare the rows of a batch
    comparable = False
    metric = None

    def __init__(
        self, function: Callable[[Tensor, Tensor], Tensor] | None = None, classes: bool = True
    ) -> None:
        self.function = function
        self.classes = classes
        self.numbers = not classes

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        got = "none, as in a trajectory from a file"
        if self.function is not None:
            losses = self.function(outputs, labels)
            if losses.shape == outputs.shape[:1]:
                return losses
            got = f"shape {tuple(losses.shape)}"
        expected = f"a callable that gives one loss per example, ({outputs.shape[0]},)"
        remedy = "Use reduction='none', and average the losses of each example alone."
        raise ArgumentError("task", expected=expected, got=got, remedy=remedy)

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if labels.shape[:1] != outputs.shape[:1]:
            _check_shape(labels, outputs.shape[:1])
        return labels


_TASKS: dict[str, Task] = {
    task.name: task
    for task in (Classification(), Regression(), Multilabel(), TokenClassification(), Span())
}


def as_task(task: str | Callable[..., Tensor] | Task | None) -> Task | None:
    """Return the task of a name or a loss function; None stays None (see `infer_task`).

    Example:
        >>> ponder.tasks.as_task("regression").name
        'regression'
        >>> absolute = ponder.tasks.as_task(lambda outputs, labels: (outputs - labels).abs()[:, 0])
        >>> absolute.losses(torch.ones(2, 1), torch.zeros(2, 1))
        tensor([1., 1.])
    """
    if task is None or isinstance(task, Task):
        return task
    if isinstance(task, str) and task in _TASKS:
        return _TASKS[task]
    if callable(task):
        return Custom(task)
    expected = f"one of {', '.join(_TASKS)}, or a callable (outputs, labels) -> losses (batch,)"
    raise ArgumentError("task", expected=expected, got=repr(task), remedy="Correct the name.")


def task_named(name: str | None) -> Task:
    """Return the task of a recorded name.

    None is classification; an unknown name is a task of the user's.
    """
    if name is None:
        return _TASKS["classification"]
    return _TASKS.get(name) or Custom()


def infer_task(outputs: Array, labels: Array) -> Task:
    """Return the task that labels show: integer labels are classes, other labels are numbers.

    Example:
        >>> infer = ponder.tasks.infer_task
        >>> infer(torch.zeros(2, 3), torch.tensor([0, 2])).name
        'classification'
        >>> infer(torch.zeros(2, 1), torch.zeros(2)).name
        'regression'
    """
    if "float" in str(labels.dtype) or outputs.shape[-1] == 1:
        return _TASKS["regression"]
    if outputs.ndim == 3:
        return _TASKS["token_classification"]
    return _TASKS["classification"]


def fits_positions(mask: Mask, array: Array | None, dim: int = 1) -> bool:
    """Return whether a mask, `(batch, length)`, fits the positions in dimension `dim`."""
    return (
        mask is not None
        and array is not None
        and array.ndim > 2
        and mask.shape[1] == array.shape[dim]
    )


def _double(array: Array) -> Array:
    if namespace(array).__name__ == "torch":
        return array.double()
    return array.astype("float64")


def _parts(array: Array, kept: int) -> Array:
    """Flatten the dimensions behind the first `kept`; a value without any is one part."""
    return array.reshape(*array.shape[:kept], math.prod(array.shape[kept:]))


def _cross_entropy(outputs: Tensor, labels: Tensor, **options: Any) -> Tensor:
    cross_entropy: Callable[..., Tensor] = namespace(outputs).nn.functional.cross_entropy
    return cross_entropy(outputs, labels, reduction="none", **options)


def _binary_cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    binary: Callable[..., Tensor] = namespace(
        outputs
    ).nn.functional.binary_cross_entropy_with_logits
    return binary(outputs, target, reduction="none")


def _divergence(student: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    """Return T² KL(teacher ‖ student) of logits over a dimension (Hinton et al. 2015).

    Logits of −inf teach nothing.
    """
    log_student = (at_least_float32(student) / temperature).log_softmax(dim)
    log_teacher = (at_least_float32(teacher) / temperature).log_softmax(dim)
    return temperature**2 * weighted(log_teacher.exp(), log_teacher - log_student).sum(dim)


def _check_shape(labels: Tensor, shape: Sequence[int]) -> None:
    if tuple(labels.shape) != tuple(shape):
        remedy = "Reshape them, or name another task."
        raise _wrong_labels(f"shape {tuple(shape)}", f"shape {tuple(labels.shape)}", remedy)


def _as_classes(labels: Tensor, shape: Sequence[int], classes: int | None) -> Tensor:
    """Return labels as long, if they are class indices of that shape, or −100."""
    _check_shape(labels, shape)
    if "int" not in str(labels.dtype):
        remedy = "Convert them with .long(), or name another task, task='regression' for numbers."
        raise _wrong_labels("integers (class indices)", labels.dtype, remedy)
    if classes is not None and labels.numel():  # PyTorch's own check aborts the process on a GPU
        low, high = labels.masked_fill(labels == IGNORED_LABEL, 0).aminmax()
        if low < 0 or high >= classes:
            expected = f"classes 0 … {classes - 1} (or {IGNORED_LABEL} for no label)"
            remedy = "Give the head one output per class, or map the labels to 0, 1, …."
            raise _wrong_labels(expected, f"values between {low} and {high}", remedy)
    return labels.long()


def _wrong_labels(expected: str, got: object, remedy: str) -> ArgumentError:
    return ArgumentError("labels", expected=expected, got=got, remedy=remedy)


def _wrong_outputs(expected: str, outputs: Tensor, remedy: str) -> ArgumentError:
    return ArgumentError(
        "outputs of the head", expected=expected, got=f"shape {tuple(outputs.shape)}", remedy=remedy
    )
