"""Records of full-depth runs, in tensors or in NumPy arrays: all that calibration reads.

A policy is replayed on a record by the loop that runs models (`ponder.running.loop.run`), over a
source that looks up the recorded values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ponder._utils.arrays import at_least_float32, namespace, on_host
from ponder._utils.checks import check_type
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, ModelSpec, PolicyBatch, StepView
from ponder.running.loop import Answers, run
from ponder.running.readings import views
from ponder.tasks import IGNORED_LABEL, Task, infer_task, task_named

__all__ = [
    "Bools",
    "Floats",
    "Ints",
    "Record",
    "RecordedSource",
    "as_array",
    "at_exits",
    "check_record",
    "serves",
    "step_outputs",
]

Floats: TypeAlias = NDArray[Any]
Ints: TypeAlias = NDArray[Any]
Bools: TypeAlias = NDArray[Any]
"""Arrays of float64, integers and bool; the types stay open, as NumPy's functions widen them."""
Array: TypeAlias = Any
"""A tensor, or an array of NumPy; all of a record are of one library."""
_CONTEXT = "policy_context."


@dataclass(frozen=True, eq=False, repr=False)
class Record:
    """The record of a full-depth run; a `ponder.Trajectory` is one in tensors.

    Args:
        outputs: The head's outputs at every step, `(batch, steps, …)`.
        hazard_logits: Logits of the hazards, `(batch, steps)`, at least float32; None without a
            Lambda head.
        row_ids: Identity of each row, `(batch,)` long (seeded sampling depends on it).
        features: The readout's features, `(batch, steps, …)`; None unless they were kept.
        labels: Labels of the examples, batch first; None if there are none.
        task: The task or its name; None if the model has none.
        mask: The positions that are not padding, `(batch, length)` bool, if outputs or features
            have positions.
        policy_context: Values that the caller gave for policies to read, by name, `(batch, …)`
            each.
        training: Whether the run was one of training mode, whose answers are not those that the
            model gives.
        weights: SHA-256 of the weights that gave the outputs, as `model.record` notes it. A
            certificate is about these.
        content_ids: Whether row ids are hashes of the rows' contents, so that equal ids are equal
            rows.

    Example:
        >>> import numpy as np
        >>> from ponder.calibration.records import Record
        >>> record = Record(np.array([[[0.0, 0.5], [0.0, 4.0]]]), None, np.arange(1))
        >>> record.exit_steps(policies.Confidence(0.9)), record.agreement()
        (array([2]), array([[ True,  True]]))
    """

    outputs: Array
    hazard_logits: Array | None
    row_ids: Array
    features: Array | None = None
    labels: Array | None = None
    task: Task | str | None = None
    mask: Array | None = None
    policy_context: Mapping[str, Array] | None = None
    training: bool = False
    weights: str | None = None
    content_ids: bool = False

    def __post_init__(self) -> None:
        steps = self.outputs.shape[:2]
        hazards = self.hazard_logits
        features = self.features
        mask = self.mask
        if (  # no loop, since a record is made in every training step
            self.row_ids.shape != steps[:1]
            or (hazards is not None and hazards.shape != steps)
            or (features is not None and features.shape[:2] != steps)
            or (mask is not None and mask.shape[:1] != steps[:1])
        ):
            got = {name: tuple(value.shape) for name, value in self.tensors().items()}
            expected = "tensors (batch, steps, …) of the same rows and steps"
            remedy = "Take the same of all of them."
            raise ArgumentError("record", expected=expected, got=got, remedy=remedy)

    def __len__(self) -> int:
        return int(self.outputs.shape[0])

    def __repr__(self) -> str:
        parts = [
            name
            for name in ("hazard_logits", "features", "labels", "mask")
            if getattr(self, name) is not None
        ]
        kept = f" with {', '.join(parts)}" if parts else ""
        sizes = f"{len(self)} rows, {self.num_steps} steps, outputs {tuple(self.outputs.shape[2:])}"
        return f"{type(self).__name__}({sizes}{kept}, task {self.meaning.name!r})"

    @property
    def num_steps(self) -> int:
        """The number of steps N."""
        return int(self.outputs.shape[1])

    @property
    def width(self) -> int:
        """The size of the last dimension of the outputs."""
        return int(self.outputs.shape[-1])

    @property
    def meaning(self) -> Task:
        """The task; by default the one that the labels show, and classification without labels."""
        if self.task is None and self.labels is not None:
            return infer_task(self.outputs[:, -1], self.labels)
        return self.batch.task

    @property
    def batch(self) -> PolicyBatch:
        """The rows, as policies see them."""
        task = self.task if isinstance(self.task, Task) else task_named(self.task)
        return PolicyBatch(self.row_ids, self.num_steps, task)

    def check(self, policy: ExitPolicy) -> None:
        """Check that `policy` can be replayed on this record."""
        check_type("policy", policy, ExitPolicy)
        has = {
            "has_hazard": self.hazard_logits,
            "has_features": self.features,
            "has_context": self.policy_context,
        }
        task = self.batch.task
        policy.check(
            ModelSpec(
                self.num_steps, task, **{name: value is not None for name, value in has.items()}
            )
        )

    def views(self, needs: frozenset[str]) -> Iterator[StepView]:
        """Yield the view of all rows after each step 1 … N, for a policy with these `needs`."""
        return views(RecordedSource(self), needs, self.batch)

    def replay(self, policy: ExitPolicy) -> Answers:
        """Return the exits of a policy, by the loop that runs models, over the recorded values.

        Returns:
            The outputs at the exits, `(rows, …)`, and the exit steps, `(rows,)`, in the library of
            the record.
        """
        self.check(policy)
        return run(RecordedSource(self), policy, self.batch)

    def exit_steps(self, policy: ExitPolicy) -> Ints:
        """Return the exit step of each row under a policy, `(rows,)`, an array of NumPy."""
        return on_host(self.replay(policy).exit_step)

    def agreement(self) -> Bools:
        """Return whether the answer of each step is that of full depth, `(rows, steps)`.

        Padding does not count. NaN is not an answer and agrees with no other; full depth agrees
        with itself.
        """
        answered = self._answered()
        agrees: Bools = (
            as_bools(self.meaning.agreement(self._read(), self.mask)) & answered & answered[:, -1:]
        )
        agrees[:, -1] = True
        return agrees

    def correct(self) -> Bools:
        """Return whether the answer of each step is right, `(rows, steps)`; NaN is wrong."""
        if not self.meaning.comparable:
            got = f"the task {self.meaning.name!r}"
            remedy = "Use its metric, or a risk or metric of your own."
            raise ArgumentError(
                "record", expected="answers that are right or wrong", got=got, remedy=remedy
            )
        return as_bools(self.meaning.correct(self._read(), self._labels())) & self._answered()

    def losses(self, risk: Callable[[Any, Any], Any], low: float = 0.0) -> Floats:
        """Return the loss of each row at each step, `(rows, steps)`; 1 without an answer.

        Args:
            risk: Losses `(rows,)` in [0, 1] from outputs of one step, `(rows, …)`, and labels.
            low: The lowest loss; lower ones are raised to it.
        """
        outputs = self._read()
        labels = self._labels()
        each = np.stack(
            [as_array(risk(outputs[:, step], labels)) for step in range(self.num_steps)], axis=1
        )
        return np.maximum(np.where(self._answered(), each, 1.0), low)

    def score_name(self, metric: str | Callable[..., Any] | None = None) -> str:
        """Return the name of a score: the task's own, or that of a callable."""
        if callable(metric):
            return getattr(metric, "__name__", "score")
        own = self.meaning.metric
        if own is None or metric not in (None, own):
            expected = f"{own!r}, or a callable (outputs, labels) -> float"
            got = f"{metric!r} with task {self.meaning.name!r}"
            raise ArgumentError("metric", expected=expected, got=got, remedy="Choose one of them.")
        return own

    def score_table(self, metric: str | Callable[..., Any] | None = None) -> Floats | None:
        """Return the score of each row at each step, `(rows, steps)`; the metric is its mean.

        Args:
            metric: ``"accuracy"``, ``"exact_match"`` (tokens, several labels) or
                ``"negative_squared_error"``; None for the task's own. A callable is no mean over
                rows, and gives None: see `answers_at`.
        """
        if callable(metric):
            return None
        self.score_name(metric)
        counted = self.meaning.metric in (
            "accuracy",
            "exact_match",
        )  # of other scores 0 may be the best
        without = 0.0 if counted else np.nan
        return np.where(
            self._answered(), as_array(self.meaning.scores(self._read(), self._labels())), without
        )

    def answers_at(self, steps: Ints) -> tuple[Array, Array]:
        """Return outputs at exits, `(rows,)`, and labels of the labelled rows or tokens."""
        task = self.meaning
        labels = self._labels()
        xp = namespace(self.outputs)
        outputs = self.outputs[xp.arange(len(self)), xp.asarray(steps) - 1]
        outputs = at_least_float32(task.without_padding(outputs, self.mask))
        labelled = labels != IGNORED_LABEL if task.per_token else task.labelled(labels)
        return outputs[labelled], labels[labelled]

    def tensors(self) -> dict[str, Array]:
        """Return every array by name; those of `policy_context` as ``policy_context.NAME``."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given = {_CONTEXT + name: value for name, value in (self.policy_context or {}).items()}
        return {name: value for name, value in {**own, **given}.items() if hasattr(value, "dtype")}

    def map(self, fn: Callable[[Any], Any]) -> Self:
        """Apply `fn` to every floating-point array, for example ``trajectory.map(Tensor.half)``."""

        def apply(value: Any) -> Any:
            made = fn(value)
            became_float = "float" in str(made.dtype) and "float" not in str(value.dtype)
            return namespace(value).asarray(made, dtype=value.dtype) if became_float else made

        return self._with({name: apply(value) for name, value in self.tensors().items()})

    def _with(self, tensors: Mapping[str, Array]) -> Self:
        """Return the same record with other tensors, by the names of `tensors`."""
        given = {
            name.removeprefix(_CONTEXT): value
            for name, value in tensors.items()
            if name.startswith(_CONTEXT)
        }
        own: dict[str, Any] = {
            name: value for name, value in tensors.items() if not name.startswith(_CONTEXT)
        }
        return dataclasses.replace(self, **own, policy_context=given or None)

    def _read(self) -> Array:
        return self.meaning.without_padding(self.outputs, self.mask)

    def _answered(self) -> Bools:
        """Return whether outputs are not NaN, `(rows, steps)`."""
        steps = range(self.num_steps)
        return np.stack(
            [as_bools(self.meaning.answered(self.outputs[:, n], self.mask)) for n in steps], axis=1
        )

    def _labels(self) -> Array:
        """Return labels as the task takes them, those of padding ignored."""
        if self.labels is None:
            remedy = "Record them: model.unroll(inputs, labels=labels)."
            raise ArgumentError("record", expected="labels", got="a record without", remedy=remedy)
        labels = self.labels
        if namespace(labels) is not np:
            labels = self.meaning.check(self.outputs[:, -1], labels.to(self.outputs.device))
        return self.meaning.inside(labels, self.mask)


class RecordedSource:
    """The running rows of a record: a `ponder.running.Source` that looks up the recorded values.

    Args:
        record: The record; a policy that is replayed on it was checked against it.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._rows: Ints | None = None  # all
        self._step = 0

    def advance(self, step: int) -> None:
        """Bring all running rows to a step."""
        self._step = step

    def output(self) -> Array:
        """Return the outputs of the running rows; before the first step those of the last."""
        return self._at_step(self._record.outputs)

    def output_of(self, index: Ints) -> Array:
        """Return the outputs of some running rows."""
        rows = index if self._rows is None else self._rows[index]
        return self._record.outputs[rows, self._step - 1]

    def features(self) -> Array:
        """Return the features of the running rows."""
        return self._at_step(self._record.features)

    def hazard_logit(self) -> Array:
        """Return the hazard logits of the running rows."""
        return at_least_float32(self._at_step(self._record.hazard_logits))

    @property
    def mask(self) -> Array | None:
        """Positions that are not padding, `(rows, length)` bool; None without any."""
        mask = self._record.mask
        return None if mask is None else self._of_rows(mask)

    @property
    def policy_context(self) -> Mapping[str, Array]:
        """Values that policies read of each running row, by name."""
        context = self._record.policy_context or {}
        return {name: self._of_rows(values) for name, values in context.items()}

    def keep(self, index: Ints) -> None:
        """See `Source.keep`."""
        self._rows = index if self._rows is None else self._rows[index]

    def _at_step(self, values: Array) -> Array:
        if self._rows is None:
            return values[:, self._step - 1]
        return values[self._rows, self._step - 1]

    def _of_rows(self, values: Array) -> Array:
        return values if self._rows is None else values[self._rows]


def check_record(record: Record, argument: str = "trajectory") -> None:
    """Refuse a record that can estimate nothing: without rows, or of training mode."""
    if not len(record) or record.training:
        expected = "a run in evaluation mode over at least one row"
        got = "a run of training mode, with dropout on" if len(record) else "no rows"
        remedy = "Record one with model.record(dataset)."
        raise ArgumentError(argument, expected=expected, got=got, remedy=remedy)


def serves(record: Record, policy: ExitPolicy) -> bool:
    """Return whether a policy can be replayed on a record."""
    try:
        record.check(policy)
    except ArgumentError:
        return False
    return True


def at_exits(table: NDArray[Any], steps: Ints) -> NDArray[Any]:
    """Return values of a table `(rows, steps)` or `(steps,)` at exits `(…, rows)`, 1-based."""
    if table.ndim == 1:
        return table.take(steps - 1)
    rows, num_steps = table.shape
    taken: NDArray[Any] = table.ravel().take(steps - 1 + np.arange(rows) * num_steps)
    return taken


def as_array(values: Any) -> Floats:
    """Return an array or a tensor as an array of float64."""
    return np.asarray(
        values if namespace(values) is np else values.detach().double().cpu(), dtype=np.float64
    )


def as_bools(values: Any) -> Bools:
    """Return an array or a tensor of flags, or one flag, as an array of bool."""
    return np.asarray(values if namespace(values) is np else values.detach().cpu(), dtype=bool)


def step_outputs(record: Record) -> list[Floats]:
    """Return the outputs of every step, `(rows, …)` each."""
    return [as_array(view.output) for view in record.views(frozenset({"output"}))]
