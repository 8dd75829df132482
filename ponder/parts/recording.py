"""What a full-depth run recorded: plain data, which everything that looks at trajectories reads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder._utils.trees import check_given
from ponder.distributions import StepDistribution
from ponder.errors import ArgumentError, ArgumentTypeError, PonderError
from ponder.parts.tasks import Custom, Task, infer_task, task_named
from ponder.parts.tasks.base import IGNORED_LABEL, fits_positions
from ponder.parts.tasks.classification import Unnamed

__all__ = [
    "Recording",
    "check_evaluated",
    "check_has_rows",
    "check_once",
    "check_sample",
    "coarse_rounding",
    "equal_rows",
    "numbers_of_step",
    "same_answers",
    "same_record",
    "too_alike",
]


@dataclass(frozen=True, eq=False)
class Recording:
    """The record of a full-depth run.

    Args:
        outputs: The head's outputs at every step, `(batch, steps, …)`.
        hazard_logits: Logits of the hazards, `(batch, steps)`, at least float32; None without a Lambda head.
        row_ids: Who each row is, `(batch,)` long (seeded sampling depends on it).
        features: The readout's features, `(batch, steps, …)`; None unless they were kept.
        labels: Labels of the examples, batch first, where they were given.
        task: Name of the task, or None.
        mask: Which positions are no padding, `(batch, length)` bool, where outputs or features have positions.
        policy_context: What the caller gave for policies to read, by name, `(batch, …)` each.
        training: Whether the run was one of training mode, with dropout and the statistics of the batch: such answers
            are not those that the model gives, and no certificate is based on them.
        task_object: The task itself, where `task` is no name of the library's; not written to files.
        weights: SHA-256 of the weights that gave the outputs, as `model.record` notes it; None where nobody did. A
            certificate is about these weights.

    Raises:
        ArgumentError: Tensors of other rows or steps than the outputs. Labels are looked at where they are read.
    """

    outputs: Tensor
    hazard_logits: Tensor | None
    row_ids: Tensor
    features: Tensor | None = None
    labels: Tensor | None = None
    task: str | None = None
    mask: Tensor | None = None
    policy_context: Mapping[str, Tensor] | None = None
    training: bool = False
    task_object: Task | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        rows, steps = self.outputs.shape[:1], self.outputs.shape[:2]
        hazards, features, mask = self.hazard_logits, self.features, self.mask
        if (
            len(steps) < 2
            or self.row_ids.shape != rows
            or (hazards is not None and hazards.shape != steps)
            or (features is not None and features.shape[:2] != steps)
            or (mask is not None and mask.shape[:1] != rows)
        ):
            raise _misfit(self)
        if self.policy_context:
            check_given("policy_context", self.policy_context, rows[0])

    def __len__(self) -> int:
        return self.outputs.shape[0]

    @property
    def num_steps(self) -> int:
        """The number of steps N."""
        return self.outputs.shape[1]

    @property
    def meaning(self) -> Task:
        """What the outputs mean; that of classes where the model named no task."""
        return self.task_object or task_named(self.task)

    def unweighted(self) -> Task:
        """The task whose losses are plain: what training weighs (classes, smoothing) is no part of a file.

        A task of the user's own is taken as it is; where the model named none, the labels tell it.
        """
        if self.task is None and self.labels is not None:
            return infer_task(self.outputs[:, -1], self.labels)
        named = task_named(self.task)
        return self.meaning if type(named) is Custom else named

    @property
    def halting(self) -> StepDistribution:
        """The halting distribution that the hazards induce, `(batch,)` over the steps.

        Raises:
            PonderError: The model had no Lambda head.
        """
        if self.hazard_logits is None:
            raise PonderError(
                "trajectory.halting: the model that was unrolled has no Lambda head, so there are no hazards. "
                "Build it with lambda_head=ponder.LambdaHead(width)."
            )
        return StepDistribution.from_hazard_logits(self.hazard_logits)

    def read_outputs(self) -> Tensor:
        """The outputs from which predictions are read, `(batch, steps, …)`: no position of padding is chosen."""
        return self.meaning.without_padding(self.outputs, self.mask)

    def answered(self) -> Tensor:
        """Where there is an answer at all, `(batch, steps)` bool: outputs without NaN, padding aside."""
        return torch.stack([self.meaning.answered(of_step, self.mask) for of_step in self.outputs.unbind(1)], dim=1)

    def agreement(self) -> Tensor:
        """Whether the prediction of each step is that of full depth, `(batch, steps)` bool; padding does not count.

        NaN is no prediction, so it agrees with none; full depth agrees with itself.
        """
        answered = self.answered()
        agrees = self.meaning.agreement(self.read_outputs(), self.mask) & answered & answered[:, -1:]
        agrees[:, -1] = True
        return agrees

    def correct(self) -> Tensor:
        """Whether the prediction of each step is right, `(batch, steps)` bool; padding does not count, NaN is wrong.

        Raises:
            ArgumentError: What `counted_labels` refuses.
        """
        labels = self.counted_labels()
        return self.meaning.correct(self.read_outputs(), labels) & self.answered()

    def counted_labels(self) -> Tensor:
        """The labels by which predictions are right or wrong; those of padding are ignored ones.

        Raises:
            ArgumentError: There are none, or the predictions of the task are not simply right or wrong.
        """
        if self.labels is None or not self.meaning.comparable:
            raise ArgumentError(
                "trajectories",
                expected="predictions that are right or wrong (classes), with labels",
                got=f"the task {self.task!r}, {'no labels' if self.labels is None else 'with labels'}",
                remedy="Record a classifier with model.unroll(inputs, labels=labels).",
            )
        self.check_unnamed("trajectories")
        labels = self.labels.to(self.outputs.device)
        return self.inside(self.meaning.check(self.outputs[:, -1], labels))  # a trajectory may be made by hand

    def check_unnamed(self, argument: str = "trajectory") -> None:
        """Refuse a run of a model that names no task where its labels tell that it does not answer with one class.

        Args:
            argument: What the run is called in the message.

        Raises:
            ArgumentError: The labels are numbers, say: the largest of the outputs is then no answer.
        """
        if self.labels is None or not isinstance(self.meaning, Unnamed):
            return
        shown = infer_task(self.outputs[:, -1], self.labels)
        if not shown.one_class:
            shape, kind = tuple(self.labels.shape), self.labels.dtype
            raise ArgumentError(
                argument,
                expected="one class for each row, where the model names no task",
                got=f"labels of shape {shape} and type {kind}, as those of {shown.name!r} are",
                remedy=f"Build the model with task={shown.name!r}.",
            )

    def inside(self, labels: Tensor) -> Tensor:
        """Checked labels, those at padding being ignored ones."""
        return self.meaning.inside(labels, self.mask)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, by name; those of `policy_context` as ``policy_context.NAME``."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given = {f"policy_context.{name}": value for name, value in (self.policy_context or {}).items()}
        return {name: value for name, value in {**own, **given}.items() if isinstance(value, Tensor)}


def _misfit(recording: Recording) -> ArgumentError:
    shapes = {name: tuple(tensor.shape) for name, tensor in recording.tensors().items()}
    return ArgumentError(
        "trajectory",
        expected="tensors of the same rows and steps: outputs and features (batch, steps, …), hazard_logits "
        "(batch, steps), row_ids (batch,) and mask (batch, …)",
        got=", ".join(f"{name} {shape}" for name, shape in shapes.items()),
        remedy="Take the same rows and steps of all of them.",
    )


def check_has_rows(recording: Recording, argument: str = "trajectory") -> None:
    """Refuse what is no recording, and an empty one."""
    if not isinstance(recording, Recording):
        raise ArgumentTypeError(
            argument,
            expected="a trajectory",
            got=type(recording).__name__,
            remedy="Record one: model.record(dataset), or model.unroll(inputs).",
        )
    if not len(recording):
        raise ArgumentError(argument, expected="at least one row", got="none", remedy="Unroll some examples first.")


def check_sample(recording: Recording, argument: str = "trajectory") -> None:
    """Refuse what nothing can be estimated from: no rows, runs of training mode, and rows that would count twice."""
    check_has_rows(recording, argument)
    check_evaluated(recording, argument)
    check_once(recording, argument)


def check_evaluated(recording: Recording, argument: str = "trajectory") -> None:
    """Refuse what was recorded in training mode: those are not the answers that the model gives."""
    if recording.training:
        raise ArgumentError(
            argument,
            expected="a run in evaluation mode, which gives the answers that the model will give",
            got="one of training mode, with dropout on",
            remedy="Call model.eval() before model.unroll(…), or use model.record(dataset).",
        )


def check_once(recording: Recording, argument: str = "trajectory") -> None:
    """Refuse data in which a row is twice, with its id and all that was recorded: it would count twice.

    Raises:
        ArgumentError: Rows are there more than once.
    """
    ids = recording.row_ids
    if len(ids.unique()) == len(ids):
        return
    numbers = at_least_float32(numbers_of_step(recording, recording.num_steps)).nan_to_num(0.0, 0.0, 0.0)
    weights = torch.arange(1, numbers.shape[1] + 1, dtype=numbers.dtype, device=numbers.device).cos()
    by_record = (numbers.asinh() @ weights).argsort()  # equal records side by side
    order = by_record[ids[by_record].argsort(stable=True)]
    pairs = (ids[order[1:]] == ids[order[:-1]]).nonzero().flatten()
    twice = same_record(recording, order[pairs], recording, order[pairs + 1])
    if bool(twice.any()):
        raise ArgumentError(
            argument,
            expected="each row once: what is estimated is about rows that are independent",
            got=f"{int(twice.sum())} of {len(ids)} rows a second time, with the same id and the same record",
            remedy="Record each row once, and join different rows: model.record(others, first_row=len(trajectory)).",
        )


def same_record(one: Recording, rows: Tensor, other: Recording, twins: Tensor, rounding: float = 0.0) -> Tensor:
    """Whether what was recorded of rows is what was recorded of others, `(rows,)` bool.

    One may have run deeper than the other: the steps that both have are compared. What stands at padding, and on which
    side it is, depends on how a row was recorded, and does not count. Rounding as in `equal_rows`.
    """
    steps = min(one.num_steps, other.num_steps)
    real, known_real = _mask_of_outputs(one, rows), _mask_of_outputs(other, twins)
    seen = _real_first(one.outputs[rows, :steps], real, 2)
    known = _real_first(other.outputs[twins, :steps], known_real, 2)
    if one.meaning.per_position and seen.dim() == known.dim() == 4:
        length = min(seen.shape[2], known.shape[2])  # each is as wide as its own longest row
        seen, known = seen[:, :, :length], known[:, :, :length]
    equal = equal_rows(seen, known, rounding)
    if one.mask is not None and other.mask is not None:
        equal &= one.mask[rows].sum(1) == other.mask[twins].sum(1)
    labels, known_labels = _labels_of(one, rows, real), _labels_of(other, twins, known_real)
    if labels is not None and known_labels is not None and labels.shape == known_labels.shape:
        equal &= torch.isclose(labels, known_labels, rtol=0, atol=0, equal_nan=True).flatten(1).all(1)
    if one.hazard_logits is not None and other.hazard_logits is not None:
        equal &= equal_rows(one.hazard_logits[rows, :steps], other.hazard_logits[twins, :steps], rounding)
    return equal


def numbers_of_step(recording: Recording, step: int) -> Tensor:
    """What each row gave at a step, from 1, `(rows, numbers)`, without what stands at padding, as it is compared."""
    outputs = recording.outputs[:, step - 1]
    return _real_first(outputs, _mask_of_outputs(recording), 1).reshape(len(outputs), -1)


def _labels_of(recording: Recording, rows: Tensor, real: Tensor | None) -> Tensor | None:
    """Labels as they are compared, `(rows, 1, …)`; None of spans too, whose places hang on the side of the padding."""
    task, labels = recording.meaning, recording.labels
    if labels is None or (task.per_position and not task.per_token):
        return None
    of_rows = labels[rows]
    of_rows = _real_first(of_rows, real, 1, IGNORED_LABEL) if task.per_token else of_rows
    return of_rows.double().unsqueeze(1)


def _mask_of_outputs(recording: Recording, rows: Tensor | slice = slice(None)) -> Tensor | None:
    """The mask of some rows, where it tells the padding of the outputs."""
    mask = recording.mask
    fits = recording.meaning.per_position and fits_positions(mask, recording.outputs[:, -1])
    return mask[rows] if mask is not None and fits else None


def _real_first(values: Tensor, mask: Tensor | None, dim: int, blank: float = 0.0) -> Tensor:
    """Values whose real positions come first, in their order, and those at padding, now alike, after them.

    Args:
        values: `(rows, …)`.
        mask: Which positions of a row are real, `(rows, length)` bool; None for all.
        dim: The dimension of the positions.
        blank: What is put at padding.
    """
    if mask is None or values.shape[dim : dim + 1] != mask.shape[1:]:
        return values
    shape = (len(values), *[1] * (dim - 1), mask.shape[1], *[1] * (values.dim() - dim - 1))
    real, order = mask.to(values.device).byte().sort(stable=True, descending=True)
    moved = values.gather(dim, order.view(shape).expand_as(values))
    return torch.where(real.view(shape).bool(), moved, blank)


def equal_rows(a: Tensor, b: Tensor, rounding: float = 0.0) -> Tensor:
    """Whether rows of numbers are the same but for the rounding of float32, or a coarser one, `(rows,)` bool.

    Args:
        a: Numbers, `(rows, …)`.
        b: Others of the same shape.
        rounding: By how much numbers may differ, relative to the largest of their row; 0 for that of float32.
    """
    a, b = at_least_float32(a), at_least_float32(b)
    if not rounding:
        return torch.isclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True).flatten(1).all(1)
    a, b = a.flatten(1), b.flatten(1)
    size = a.abs().nan_to_num(0.0, 0.0, 0.0).amax(1, keepdim=True).clamp(min=1e-5)
    return torch.isclose(a / size, b / size, rtol=0.0, atol=rounding, equal_nan=True).all(1)


def same_answers(
    task: Task, given: Tensor, full: Tensor, *, mask: Tensor | None = None, tolerance: float = 0.0
) -> Tensor:
    """Whether answers are those of full depth, `(batch,)` bool.

    NaN is no answer, and differs from every answer. Where full depth has none either, nothing differs.

    Args:
        task: What the outputs mean.
        given: Outputs that were given, `(batch, …)`.
        full: The outputs of full depth for the same rows.
        mask: Which positions count, `(batch, length)` bool; None for all.
        tolerance: How far apart equal numbers may be, for tasks of numbers.
    """
    one, other = (task.predictions(task.without_padding(outputs, mask)) for outputs in (given, full))
    same, answered = task.same(one, other, tolerance=tolerance, mask=mask), task.answered(given, mask)
    return torch.where(task.answered(full, mask), same & answered, ~answered)


def too_alike(near: int, by_chance: int, shared: int) -> bool:
    """Whether rows that are nearly the same, in half precision, are so because they are the same.

    By chance as many are with a probability of at most exp(−shared · KL(share ‖ chance)), by Chernoff's bound.

    Args:
        near: How many of the rows with the same id are.
        by_chance: How many rows with other ids are.
        shared: How many have the same id.
    """
    share, chance = near / max(shared, 1), (by_chance + 1) / (shared + 2)
    if share < 0.95 or share <= chance:
        return False
    apart = (1.0 - share) * math.log((1.0 - share) / (1.0 - chance)) if near < shared else 0.0
    return math.exp(-shared * (share * math.log(share / chance) + apart)) < 1e-3


def coarse_rounding(*tensors: Tensor) -> float:
    """By how much numbers may differ that were recorded twice, where some are in half precision; 0 where none are."""
    steps = [torch.finfo(each.dtype).eps for each in tensors if each.is_floating_point()]
    return 4.0 * max(steps, default=0.0) if max(steps, default=0.0) > 1e-5 else 0.0
