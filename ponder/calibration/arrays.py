"""`ArrayRecord`: the record of a full-depth run in NumPy, as exports, cascades and files of answers give it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ponder.calibration.records import Bools, Floats, Ints
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, ModelSpec, PolicyBatch, StepView
from ponder.tasks import IGNORED_LABEL, Task, task_named

__all__ = ["ArrayRecord", "run_policy"]

_CLASSIFICATION = task_named("classification")


@dataclass(frozen=True, eq=False)
class ArrayRecord:
    """The record of a full-depth run, in arrays.

    Args:
        outputs: Outputs of every step, `(rows, steps, …)`.
        row_ids: Identity of each row, `(rows,)`.
        labels: Labels, `(rows, …)`, −100 where a row or token has none.
        hazard_logits: Logits of the hazards, `(rows, steps)`.
        features: Features of every step, `(rows, steps, …)`.
        mask: The positions that are no padding, `(rows, length)` bool, where outputs have positions.
        meaning: The task.
        weights: Digest of the weights that gave the outputs.
        content_ids: Whether row ids are hashes of the rows' contents, so that equal ids are equal rows.

    Example:
        >>> import numpy as np
        >>> from ponder.calibration.arrays import ArrayRecord
        >>> record = ArrayRecord(np.array([[[0.0, 0.5], [0.0, 4.0]]]), np.arange(1))
        >>> record.exit_steps(policies.Confidence(0.9)), record.agreement()
        (array([2]), array([[ True,  True]]))
    """

    outputs: Floats
    row_ids: Ints
    labels: Any = None
    hazard_logits: Floats | None = None
    features: Floats | None = None
    mask: Bools | None = None
    meaning: Task = _CLASSIFICATION
    weights: str | None = None
    content_ids: bool = False

    is_training_run = False

    def __len__(self) -> int:
        return len(self.outputs)

    @property
    def num_steps(self) -> int:
        """The number of steps N."""
        return int(self.outputs.shape[1])

    @property
    def width(self) -> int:
        """The size of the last dimension of the outputs."""
        return int(self.outputs.shape[-1])

    @property
    def batch(self) -> PolicyBatch:
        """The rows, as policies see them."""
        return PolicyBatch(np.asarray(self.row_ids), self.num_steps, self.meaning)

    def check(self, policy: ExitPolicy) -> None:
        """Raise where `policy` cannot be replayed on this record."""
        has = {"has_hazard": self.hazard_logits is not None, "has_features": self.features is not None}
        policy.check(ModelSpec(self.num_steps, self.meaning, **has, has_context=False))

    def views(self, needs: frozenset[str]) -> Iterator[StepView]:
        """Yield what a policy with these `needs` sees of all rows after each step 1 … N."""
        log_survival = np.zeros(len(self), dtype=np.float32)
        for step in range(self.num_steps):
            readings: dict[str, Any] = {"output": self.meaning.without_padding(self.outputs[:, step], self.mask)}
            if self.hazard_logits is not None:
                hazards, log_survival = _hazards(self.hazard_logits[:, step], log_survival)
                readings |= hazards
            if self.features is not None:
                readings["features"] = self.features[:, step]
            index = np.full(len(self), step + 1)
            mask = self.mask if self.meaning.per_position else None
            yield StepView(index, self.num_steps, readings, self.meaning, mask)

    def exit_steps(self, policy: ExitPolicy) -> Ints:
        """Return the exit step of each row under a policy, `(rows,)`."""
        self.check(policy)
        return run_policy(policy, self.batch, self.views(policy.needs))

    def agreement(self) -> Bools:
        """Return whether the answer of each step is that of full depth, `(rows, steps)`; NaN agrees with none."""
        answered = self._answered()
        agrees: Bools = self.meaning.agreement(self._read(), self.mask) & answered & answered[:, -1:]
        agrees[:, -1] = True
        return agrees

    def correct(self) -> Bools:
        """Return whether the answer of each step is right, `(rows, steps)`; NaN is wrong."""
        right: Bools = self.meaning.correct(self._read(), self._labels()) & self._answered()
        return right

    def losses(self, risk: Callable[[Any, Any], Any], low: float = 0.0) -> Floats:
        """Return a risk of each row, should it exit at each step, `(rows, steps)`; 1 where there is no answer."""
        outputs, labels = self._read(), self._labels()
        each = np.stack([np.asarray(risk(outputs[:, n], labels), dtype=float) for n in range(self.num_steps)], 1)
        return np.maximum(np.where(self._answered(), each, 1.0), low)

    def score_name(self, metric: Any = None) -> str:
        """Return the name of a score."""
        return getattr(metric, "__name__", "score") if callable(metric) else str(self.meaning.metric)

    def score_table(self, metric: Any = None) -> Floats | None:
        """Return the score of each row at each step, `(rows, steps)`; None for a callable, which is no mean."""
        if callable(metric):
            return None
        scores = self.meaning.scores(self._read(), self._labels())
        return np.where(self._answered(), scores, 0.0 if self.meaning.metric == "accuracy" else np.nan)

    def answers_at(self, steps: Ints) -> tuple[Any, Any]:
        """Return the outputs at exits, `(rows,)`, and the labels, as a metric takes them."""
        return self._read()[np.arange(len(self)), np.asarray(steps) - 1], self._labels()

    def _read(self) -> Floats:
        outputs: Floats = self.meaning.without_padding(self.outputs, self.mask)
        return outputs

    def _answered(self) -> Bools:
        return np.stack([self.meaning.answered(self.outputs[:, n], self.mask) for n in range(self.num_steps)], 1)

    def _labels(self) -> Any:
        if self.labels is None:
            raise ArgumentError("record", expected="labels", got="a record without", remedy="Pass labels with it.")
        labels = np.asarray(self.labels)
        if self.mask is None or not self.meaning.per_token:
            return labels
        return np.where(self.mask, labels, IGNORED_LABEL)


def run_policy(policy: ExitPolicy, batch: PolicyBatch, views: Iterator[StepView]) -> Ints:
    """Return the exit step of each row, `(rows,)`, by asking a policy about all rows after every step but the last."""
    state, exits = policy.init(batch), np.full(batch.size, batch.num_steps)
    for step, view in zip(range(1, batch.num_steps), views, strict=False):
        mask, state = policy.decide(view, state)
        exits = np.where((exits == batch.num_steps) & mask, step, exits)
    return exits


def _hazards(logit: Floats, log_survival: Floats) -> tuple[dict[str, Floats], Floats]:
    """Return hazard, survival before the step and CDF from a step's logits, and the log survival after it."""
    after = log_survival - np.logaddexp(0, logit)
    readings = {"hazard": np.exp(-np.logaddexp(0, -logit)), "survival": np.exp(log_survival), "cdf": -np.expm1(after)}
    return readings, after
