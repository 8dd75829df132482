"""Records of full-depth runs, in tensors or in NumPy arrays: all that calibration reads.

A policy is replayed on a record by the loop that runs models (`ponder.running.loop.run`), over a
`RecordedSource` that looks up the recorded values. `agreement`, `correct`, `losses` and
`score_table` are tables `(rows, steps)` over all exits that a row could take; `at_exits` reads from
them the values of the exits that it does take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ponder._utils.arrays import (
    Bools,
    Floats,
    Ints,
    as_array,
    at_least_float32,
    namespace,
    on_host,
)
from ponder._utils.checks import check_type
from ponder._utils.rows import content_ids
from ponder.calibration.tables import read_steps
from ponder.calibration.votes import (
    block_ends,
    log_shares,
    running_shares,
    running_sums,
    standard_error,
)
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, ModelSpec, PolicyBatch, StepView
from ponder.running.loop import Answers, run
from ponder.running.readings import views
from ponder.statistics.repeats import share_rows
from ponder.tasks import IGNORED_LABEL, Task, infer_task, task_named

__all__ = [
    "Bools",
    "Floats",
    "Ints",
    "Metric",
    "Record",
    "RecordedSource",
    "at_exits",
    "check_fresh",
    "check_record",
    "serves",
    "step_outputs",
]

Array: TypeAlias = Any
"""A tensor, or an array of NumPy; all of a record are of one library."""
Metric: TypeAlias = str | Callable[[Array, Array], float]
"""Name of a score, or a function of outputs and labels of which higher is better."""
_CONTEXT = "policy_context."


class AnswersAndLabels(NamedTuple):
    """Outputs and their labels, as a metric takes them: those of labelled rows or tokens."""

    outputs: Array
    labels: Array


@dataclass(frozen=True, eq=False, repr=False)
class Record:
    """The record of a full-depth run; a `ponder.Trajectory` is one in tensors.

    Args:
        outputs: The head's outputs at every step, `(batch, steps, …)`.
        hazard_logits: Logits of the hazards, `(batch, steps)`, at least float32; None without a
            Lambda head.
        row_ids: Identity of each row, `(batch,)` long (seeded sampling depends on it).
        features: The readout's features, `(batch, steps, …)`; None unless they were kept.
        labels: Labels of the examples, batch first, or None.
        task: The task or its name; None if the model names none.
        mask: The positions that are not padding, `(batch, length)` bool; None if neither outputs
            nor features have positions.
        policy_context: Values that the caller passed for policies to read, by name, `(batch, …)`
            each.
        training: Whether the run was in training mode, in which answers are random.
        weights: SHA-256 of the weights that gave the outputs, as `model.record` notes it. A
            certificate is about these weights.
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

    @classmethod
    def from_votes(
        cls, votes: Array, *, block: int = 1, num_classes: int | None = None, **fields: Any
    ) -> Self:
        """Return the record of votes that are counted one after the other.

        Step n is the count after n blocks of members. Its outputs are the logarithms of the shares
        of the classes, so that their softmax is the shares, and the most probable class the answer.

        Args:
            votes: The class that each member votes for, `(items, members)` integers from 0; or the
                probabilities that each member gives, `(items, members, classes)`. In no order that
                depends on the item: trees of a forest, samples, passes with dropout.
            block: Members that are counted at once.
            num_classes: Number of classes; by default the highest number among the votes, plus 1.
            fields: Further fields of the record, such as `labels` or `row_ids` (by default the
                position of each item).

        Raises:
            ArgumentError: Votes that are no class numbers, or no members.

        Example:
            >>> record = Record.from_votes([[0, 1, 1], [2, 2, 2]])
            >>> np.exp(record.outputs[0]).round(2)
            array([[1.  , 0.  , 0.  ],
                   [0.5 , 0.5 , 0.  ],
                   [0.33, 0.67, 0.  ]])
        """
        shares = running_shares(votes, block, num_classes)
        row_ids = fields.pop("row_ids", np.arange(len(shares)))
        return cls(log_shares(shares), None, row_ids, task="classification", **fields)

    @classmethod
    def from_values(cls, values: Array, *, block: int = 1, **fields: Any) -> Self:
        """Return the record of numbers whose mean is the answer, such as those of a forest's trees.

        Args:
            values: The number that each member gives, `(items, members)`.
            block: Members that are added at once.
            fields: Further fields of the record.
        """
        sums = running_sums(values, block)
        ends = block_ends(np.asarray(values).shape[1], block)
        row_ids = fields.pop("row_ids", np.arange(len(sums)))
        means = sums[..., :1] / ends[:, None]
        features = standard_error(sums, ends)
        return cls(means, None, row_ids, features=features, task="regression", **fields)

    @classmethod
    def from_table(cls, table: Any, **reading: Any) -> Self:
        """Return the record of intermediate answers, such as votes or reasoning traces.

        Args:
            table: Mappings from names of columns to values, a line each; or a DataFrame. A line is
                an `item`, the number of a `step` from 1, the `answer`, and, if known, a
                `confidence` in [0, 1], which `policies.RightAnswer` reads if the last answer
                stands.
            reading: Arguments of `ponder.calibration.tables.read_steps`: how answers `combine`, and
                names of these columns, if they are others: ``item="question"``.

        Raises:
            ArgumentError: A missing step, two answers of one step, or a confidence outside [0, 1];
                the error names the line.
        """
        steps = read_steps(table, **reading)
        ids = np.array(content_ids([repr(item) for item in steps.items]))
        combine = reading.get("combine", "last")
        if combine == "votes":
            return cls.from_votes(steps.answers, row_ids=ids)
        if combine == "mean":
            return cls.from_values(steps.answers, row_ids=ids)
        stands = np.eye(max(int(steps.answers.max()) + 1, 2))[steps.answers]
        return cls(log_shares(stands), steps.hazard_logits, ids, task="classification")

    def __post_init__(self) -> None:
        if not self._shapes_agree():
            raise ArgumentError(
                "record",
                expected="tensors (batch, steps, …) of the same rows and steps",
                got={name: tuple(value.shape) for name, value in self.tensors().items()},
                remedy="Select the same rows and steps of all of them.",
            )

    def _shapes_agree(self) -> bool:
        """Return whether all tensors have the same rows and steps.

        It is written without a loop, since a record is made in every training step.
        """
        steps = self.outputs.shape[:2]
        hazards = self.hazard_logits
        features = self.features
        mask = self.mask
        return bool(
            self.row_ids.shape == steps[:1]
            and (hazards is None or hazards.shape == steps)
            and (features is None or features.shape[:2] == steps)
            and (mask is None or mask.shape[:1] == steps[:1])
        )

    def __len__(self) -> int:
        return int(self.outputs.shape[0])

    def __repr__(self) -> str:
        optional = ("hazard_logits", "features", "labels", "mask")
        present = [name for name in optional if getattr(self, name) is not None]
        kept = ""
        if present:
            kept = f" with {', '.join(present)}"
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
        """The task; if the model named none, the one that labels show, or else classification."""
        if self.task is None and self.labels is not None:
            return infer_task(self.outputs[:, -1], self.labels)
        return self.batch.task

    @property
    def batch(self) -> PolicyBatch:
        """The rows, as policies see them."""
        task = self.task
        if not isinstance(task, Task):
            task = task_named(task)
        return PolicyBatch(self.row_ids, self.num_steps, task)

    def check(self, policy: ExitPolicy) -> None:
        """Raise an error if `policy` cannot be replayed on this record."""
        check_type("policy", policy, ExitPolicy)
        spec = ModelSpec(
            self.num_steps,
            self.batch.task,
            has_hazard=self.hazard_logits is not None,
            has_features=self.features is not None,
            has_context=self.policy_context is not None,
        )
        policy.check(spec)

    def views(self, needs: frozenset[str]) -> Iterator[StepView]:
        """Yield the view of a policy with these `needs` of all rows, after each step 1 … N."""
        return views(RecordedSource(self), needs, self.batch)

    def replay(self, policy: ExitPolicy) -> Answers:
        """Return the answers that the model would give with a policy.

        It runs the same loop as the model, over the recorded values.

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

        Padding does not count. NaN agrees with no answer; full depth agrees with itself.
        """
        answered = self._answered()
        same = as_bools(self.meaning.agreement(self._unpadded_outputs(), self.mask))
        agrees: Bools = same & answered & answered[:, -1:]
        agrees[:, -1] = True
        return agrees

    def correct(self) -> Bools:
        """Return whether the answer of each step is right, `(rows, steps)`.

        Padding does not count. NaN is wrong.
        """
        if not self.meaning.comparable:
            raise ArgumentError(
                "record",
                expected="answers that are right or wrong",
                got=f"the task {self.meaning.name!r}",
                remedy="Use its metric, or a risk or metric of your own.",
            )
        right = as_bools(self.meaning.correct(self._unpadded_outputs(), self._task_labels()))
        return right & self._answered()

    def losses(self, risk: Callable[[Array, Array], Array], low: float = 0.0) -> Floats:
        """Return the loss of each row if it exits at each step, `(rows, steps)`.

        Without an answer it is 1.

        Args:
            risk: Losses `(rows,)` in [0, 1] from outputs of one step, `(rows, …)`, and labels.
            low: The lowest loss; lower ones are raised to it.
        """
        outputs = self._unpadded_outputs()
        labels = self._task_labels()
        of_steps = [as_array(risk(outputs[:, step], labels)) for step in range(self.num_steps)]
        return np.maximum(np.where(self._answered(), np.stack(of_steps, axis=1), 1.0), low)

    def score_name(self, metric: Metric | None = None) -> str:
        """Return the name of a score: the task's own, or that of a callable."""
        if callable(metric):
            return getattr(metric, "__name__", "score")
        of_task = self.meaning.metric
        if of_task is None or metric not in (None, of_task):
            raise ArgumentError(
                "metric",
                expected=f"{of_task!r}, or a callable (outputs, labels) -> float",
                got=f"{metric!r} with task {self.meaning.name!r}",
                remedy="Choose one of them.",
            )
        return of_task

    def score_table(self, metric: Metric | None = None) -> Floats | None:
        """Return the score of each row at each step, `(rows, steps)`.

        The mean of a column is the metric of that step.

        Args:
            metric: ``"accuracy"``, ``"exact_match"`` (tokens, several labels) or
                ``"negative_squared_error"``; None for the task's own. For a callable, which is no
                mean over rows, there is no table; see `answers_at`.

        Returns:
            The table; None for a callable.
        """
        if callable(metric):
            return None
        self.score_name(metric)
        # Without an answer a share of right answers is 0; of other scores 0 may be the best.
        is_share = self.meaning.metric in ("accuracy", "exact_match")
        unanswered = 0.0 if is_share else np.nan
        scores = as_array(self.meaning.scores(self._unpadded_outputs(), self._task_labels()))
        return np.where(self._answered(), scores, unanswered)

    def answers_at(self, steps: Ints) -> AnswersAndLabels:
        """Return outputs and labels, as a metric takes them, at exit steps `(rows,)`."""
        task = self.meaning
        labels = self._task_labels()
        xp = namespace(self.outputs)
        outputs = self.outputs[xp.arange(len(self)), xp.asarray(steps) - 1]
        outputs = at_least_float32(task.without_padding(outputs, self.mask))
        if task.per_token:
            labelled = labels != IGNORED_LABEL
        else:
            labelled = task.labelled(labels)
        return AnswersAndLabels(outputs[labelled], labels[labelled])

    def tensors(self) -> dict[str, Array]:
        """Return all tensors, or arrays, by name; ``policy_context.NAME`` is one of the context."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, value in (self.policy_context or {}).items():
            values[_CONTEXT + name] = value
        return {name: value for name, value in values.items() if hasattr(value, "dtype")}

    def map(self, fn: Callable[[Array], Array]) -> Self:
        """Apply `fn` to every tensor, for example ``trajectory.map(Tensor.half)``.

        Integers and flags keep their type.
        """

        def apply(value: Array) -> Array:
            changed = fn(value)
            became_float = "float" in str(changed.dtype) and "float" not in str(value.dtype)
            if became_float:
                return namespace(value).asarray(changed, dtype=value.dtype)
            return changed

        return self._with({name: apply(value) for name, value in self.tensors().items()})

    def _with(self, tensors: Mapping[str, Array]) -> Self:
        """Return the same record with other tensors, by the names of `tensors`."""
        context = dict[str, Array]()
        fields = dict[str, Any]()
        for name, value in tensors.items():
            if name.startswith(_CONTEXT):
                context[name.removeprefix(_CONTEXT)] = value
            else:
                fields[name] = value
        return dataclasses.replace(self, **fields, policy_context=context or None)

    def _unpadded_outputs(self) -> Array:
        return self.meaning.without_padding(self.outputs, self.mask)

    def _answered(self) -> Bools:
        """Return whether outputs have no NaN, `(rows, steps)`."""
        meaning = self.meaning
        of_steps = [
            as_bools(meaning.answered(self.outputs[:, step], self.mask))
            for step in range(self.num_steps)
        ]
        return np.stack(of_steps, axis=1)

    def _task_labels(self) -> Array:
        """Return labels as the task takes them; those of padding are ignored."""
        if self.labels is None:
            raise ArgumentError(
                "record",
                expected="labels",
                got="a record without",
                remedy="Record them: model.unroll(inputs, labels=labels).",
            )
        labels = self.labels
        if namespace(labels) is not np:
            labels = self.meaning.check(self.outputs[:, -1], labels.to(self.outputs.device))
        return self.meaning.inside(labels, self.mask)


class RecordedSource:
    """The remaining rows of a record: a `ponder.running.Source` that looks up recorded values.

    Args:
        record: The record; call its `check` with the policy that is to be replayed.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._rows: Ints | None = None  # positions of the remaining rows; None for all
        self._step = 0

    def advance(self, step: int) -> None:
        """Bring all running rows to a step."""
        self._step = step

    def output(self) -> Array:
        """Return the outputs of the running rows.

        Before the first step, when the loop asks for the shape of outputs, they are those of the
        last.
        """
        return self._at_step(self._record.outputs)

    def output_of(self, index: Ints) -> Array:
        """Return the outputs of some running rows."""
        return self._record.outputs[self._positions(index), self._step - 1]

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
        if mask is None:
            return None
        return self._of_rows(mask)

    @property
    def policy_context(self) -> Mapping[str, Array]:
        """Values that policies read of each running row, by name."""
        context = self._record.policy_context or {}
        return {name: self._of_rows(values) for name, values in context.items()}

    def keep(self, index: Ints) -> None:
        """Keep some of the running rows, and drop the others."""
        self._rows = self._positions(index)

    def _positions(self, index: Ints) -> Ints:
        """Return the positions in the record of some running rows."""
        if self._rows is None:
            return index
        return self._rows[index]

    def _at_step(self, values: Array) -> Array:
        return self._of_rows(values[:, self._step - 1])

    def _of_rows(self, values: Array) -> Array:
        if self._rows is None:
            return values
        return values[self._rows]


def check_record(record: Record, argument: str = "trajectory") -> None:
    """Raise an error if a record has no rows, or is a run in training mode."""
    if not len(record) or record.training:
        got = "no rows"
        if len(record):
            got = "a run of training mode, with dropout on"
        raise ArgumentError(
            argument,
            expected="a run in evaluation mode over at least one row",
            got=got,
            remedy="Record one with model.record(dataset).",
        )


def serves(record: Record, policy: ExitPolicy) -> bool:
    """Return whether a policy can be replayed on a record."""
    try:
        record.check(policy)
    except ArgumentError:
        return False
    return True


def at_exits(table: NDArray[Any], steps: Ints) -> NDArray[Any]:
    """Return the values of a table at exits, `(…, rows)`.

    Args:
        table: Values `(rows, steps)`, or `(steps,)` if they are the same for all rows.
        steps: Exit steps `(…, rows)`, 1-based.
    """
    if table.ndim == 1:
        return table.take(steps - 1)
    rows, num_steps = table.shape
    # `take` on the flat table is several times faster than two index arrays.
    values: NDArray[Any] = table.ravel().take(steps - 1 + np.arange(rows) * num_steps)
    return values


def as_bools(values: Array) -> Bools:
    """Return an array or a tensor of flags, or one flag, as an array of bool."""
    if namespace(values) is not np:
        values = values.detach().cpu()
    return np.asarray(values, dtype=bool)


def step_outputs(record: Record) -> list[Floats]:
    """Return the outputs of every step, `(rows, …)` each."""
    return [as_array(view.output) for view in record.views(frozenset({"output"}))]


def check_fresh(test: Record, seen: Record, argument: str = "test") -> None:
    """Refuse a record that shares rows with another one, or that is a run of other weights.

    Rows are compared by `share_rows`, if their ids are hashes of contents.
    """
    check_record(test, argument)
    weights = {test.weights, seen.weights} - {None}
    comparable = test.content_ids and seen.content_ids
    shared = comparable and share_rows(test.row_ids, seen.row_ids)
    if shared or len(weights) > 1:
        repeated = 0
        if shared:
            is_shared = np.isin(np.asarray(test.row_ids), np.asarray(seen.row_ids))
            repeated = int(is_shared.sum())
        digests = " and ".join(sorted(map(str, weights)))
        raise ArgumentError(
            argument,
            expected="other rows than those that chose the policy, under the same weights",
            got=f"{repeated} of {len(test)} rows again, weights {digests}",
            remedy="Split the data first, ponder.split(texts), "
            "and record both sides with one model.",
        )
