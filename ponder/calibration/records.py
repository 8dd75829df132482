"""Records of full-depth runs, as everything in this package reads them: arrays `(rows, steps)`, and no PyTorch."""

# ruff: noqa: D102 (the class describes the members of the protocol)
from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ponder._utils.arrays import namespace
from ponder.errors import ArgumentError

if TYPE_CHECKING:
    from ponder.policies.base import ExitPolicy, PolicyBatch, StepView
    from ponder.tasks import Task

__all__ = [
    "Bools",
    "Floats",
    "Ints",
    "Record",
    "as_array",
    "at_exits",
    "check_fresh",
    "check_record",
    "halting_distribution",
    "serves",
    "step_outputs",
]

Floats: TypeAlias = NDArray[Any]
Ints: TypeAlias = NDArray[Any]
Bools: TypeAlias = NDArray[Any]
"""Arrays of float64, of integers and of bool: types of the numbers stay open, which NumPy's own functions widen."""


class Record(Protocol):
    """A full-depth run: a `Trajectory`, or the record of a cascade.

    `width` is the size of the outputs' last dimension; with `content_ids` equal ids are equal rows; the mean of
    `score_table` at the exits is the score; where it is None, the metric takes the outputs and labels of `answers_at`.
    """

    @property
    def num_steps(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def row_ids(self) -> Any: ...
    @property
    def content_ids(self) -> bool: ...
    @property
    def weights(self) -> str | None: ...
    @property
    def labels(self) -> Any: ...
    @property
    def meaning(self) -> Task: ...
    @property
    def batch(self) -> PolicyBatch: ...
    @property
    def is_training_run(self) -> bool: ...
    def __len__(self) -> int: ...
    def check(self, policy: ExitPolicy) -> None: ...
    def views(self, needs: frozenset[str]) -> Iterator[StepView]: ...
    def exit_steps(self, policy: ExitPolicy) -> Ints: ...
    def agreement(self) -> Bools: ...
    def correct(self) -> Bools: ...
    def losses(self, risk: Any, low: float) -> Floats: ...
    def score_table(self, metric: Any) -> Floats | None: ...
    def score_name(self, metric: Any) -> str: ...
    def answers_at(self, steps: Ints) -> tuple[Any, Any]: ...


def check_record(record: Record, argument: str = "trajectory") -> None:
    """Raise where nothing can be estimated from a record: no rows, or the answers of training mode."""
    if not len(record) or record.is_training_run:
        raise ArgumentError(
            argument,
            expected="a run in evaluation mode over at least one row",
            got="a run of training mode, with dropout on" if len(record) else "no rows",
            remedy="Record one with model.record(dataset).",
        )


def check_fresh(test: Record, seen: Record, argument: str = "test") -> None:
    """Raise where a record holds rows of another one, by their content ids, or is a run of other weights."""
    check_record(test, argument)
    weights = {test.weights, seen.weights} - {None}
    known = np.isin(np.asarray(test.row_ids), np.asarray(seen.row_ids)) & (test.content_ids and seen.content_ids)
    if known.any() or len(weights) > 1:
        raise ArgumentError(
            argument,
            expected="other rows than those that chose the policy, under the same weights",
            got=f"{known.sum()} of {len(test)} rows again, weights {' and '.join(sorted(map(str, weights)))}",
            remedy="Split the data first, ponder.split(texts), and record both sides with one model.",
        )


def serves(record: Record, policy: ExitPolicy) -> bool:
    """Return whether a policy can be replayed on a record."""
    try:
        record.check(policy)
    except ArgumentError:
        return False
    return True


def at_exits(table: NDArray[Any], steps: Ints) -> NDArray[Any]:
    """Return the values of a table `(rows, steps)`, or `(steps,)` for all rows, at exits `(…, rows)`, 1-based."""
    if table.ndim == 1:
        return table.take(steps - 1)
    rows, num_steps = table.shape
    taken: NDArray[Any] = table.ravel().take(steps - 1 + np.arange(rows) * num_steps)
    return taken


def as_array(values: Any) -> Floats:
    """Return an array or a tensor as an array of float64."""
    return np.asarray(values if namespace(values) is np else values.detach().double().cpu(), dtype=np.float64)


def step_outputs(record: Record) -> list[Floats]:
    """Return the outputs of every step, `(rows, …)` each."""
    return [as_array(view.output) for view in record.views(frozenset({"output"}))]


def halting_distribution(record: Record) -> Floats:
    """Return the probability of halting at each step, `(rows, steps)`; the last takes all that remains."""
    cdf = np.stack([as_array(view.cdf) for view in record.views(frozenset({"hazard"}))], axis=1)
    cdf[:, -1] = 1.0
    return np.diff(cdf, axis=1, prepend=0.0)
