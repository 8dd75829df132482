"""Families of policies that differ in one threshold, with the exits under all its values from one pass.

A policy scores how ready each row is to exit at each step (`ExitPolicy.scores`). A row exits at the first step whose
score crosses the bar, so the running maximum of its scores tells the exits under any number of bars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, all_within

if TYPE_CHECKING:
    from ponder.policies.base import PolicyBatch, StepView
    from ponder.tasks import Task

__all__ = ["Family", "FamilyLike", "Record", "at_exits", "check_record", "family_of", "serves"]

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.intp]
FamilyLike: TypeAlias = type[ExitPolicy] | ExitPolicy | Callable[[float], ExitPolicy]
_CELLS = 2**21  # rows × thresholds that are held at a time
_BETWEEN = 201


class Record(Protocol):
    """A full-depth run, as everything in this package reads it: a `Trajectory`, or the record of a cascade.

    Matrices are NumPy arrays, `(rows, steps)`. `width` is the size of the outputs' last dimension; `content_ids` says
    that equal ids are equal rows; `score_table` holds values whose mean at the exits is the score, or is None where the
    score is no mean over rows, and `answers_at` gives the outputs and labels of which a metric is computed.
    """

    num_steps: int
    width: int
    row_ids: Any
    content_ids: bool
    weights: str | None
    labels: Any
    meaning: Task
    batch: PolicyBatch
    is_training_run: bool

    def __len__(self) -> int: ...
    def check(self, policy: ExitPolicy) -> None: ...
    def views(self, needs: frozenset[str]) -> Iterator[StepView]: ...
    def exit_steps(self, policy: ExitPolicy) -> Ints: ...
    def agreement(self) -> NDArray[np.bool_]: ...
    def correct(self) -> NDArray[np.bool_]: ...
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
    return table.ravel().take(steps - 1 + np.arange(rows) * num_steps)


@dataclass(frozen=True, eq=False)
class Family:
    """Policies that differ in one threshold.

    Args:
        threshold: Name of the threshold; ``"value"`` where a callable builds the policies.
        values: Its values, rising or falling.
        build: Makes the policy of a value.
        policy: One of the policies, and …
        free: … the part of it whose threshold is moved; None where a callable builds the policies.
    """

    threshold: str
    values: tuple[float, ...]
    build: Callable[[float], ExitPolicy]
    policy: ExitPolicy
    free: ExitPolicy | None

    def late_first(self) -> Ints:
        """Return the places of the values from the latest exits to the earliest.

        The order must not depend on data, or fixed-sequence testing promises nothing. So it is read from the declared
        threshold; values of a callable stay in the order in which they were given.
        """
        places = np.arange(len(self.values))
        if self.free is None or self.free.tunable is None:
            return places
        rising = self.values[0] < self.values[-1]
        return places[::-1] if rising == self.free.tunable.higher_exits_later else places

    def exit_steps(self, record: Record, places: Ints | None = None) -> Iterator[tuple[Ints, Ints]]:
        """Yield the exit steps `(thresholds, rows)` of blocks of the values, with their places, `(thresholds,)`."""
        places = np.arange(len(self.values)) if places is None else places
        size = max(_CELLS // len(record), 1)
        reached = None if self.free is None else self.reached(record)
        for start in range(0, len(places), size):
            block = places[start : start + size]
            if reached is None:
                steps = [record.exit_steps(self.build(self.values[place])) for place in block]
                yield block, np.stack(steps).astype(np.intp)
            else:
                yield block, self._crossings(reached, block)

    def reached(self, record: Record) -> Floats:
        """Return the running maximum of the readiness, `(rows, steps − 1)`."""
        return np.fmax.accumulate(self.policy.scores(record, self.free)[:, :-1], axis=1)

    def _crossings(self, reached: Floats, places: Ints) -> Ints:
        assert self.free is not None
        assert self.free.tunable is not None
        threshold = self.free.tunable
        bars = np.asarray(self.values)[places, None] * (1.0 if threshold.higher_exits_later else -1.0)
        single = reached.astype(np.float32)
        if np.array_equal(single, reached, equal_nan=True):  # computed in float32, in which a run compares them too
            reached, bars = single, bars.astype(np.float32)
        crosses = np.greater_equal if threshold.inclusive else np.greater
        steps = np.ones((len(places), len(reached)), dtype=np.intp)
        for column in reached.T:
            steps += ~crosses(column, bars)
        return steps

    def between(self, record: Record) -> list[float]:
        """Return values between the scores of the rows, spread so that about as many exits change from each to the next.

        No label takes part.
        """
        if self.free is None or record.num_steps < 2:
            return []
        assert self.free.tunable is not None
        reached = self.reached(record)
        reached = np.sort(reached[np.isfinite(reached)])
        if len(reached) > _BETWEEN:
            reached = reached[np.linspace(0, len(reached) - 1, _BETWEEN).astype(np.intp)]
        sign = 1.0 if self.free.tunable.higher_exits_later else -1.0
        return [sign * _short_between(low, high) for low, high in pairwise(np.unique(reached).tolist())]


def family_of(
    like: FamilyLike, grid: Iterable[float] | None, record: Record, *, look: bool = False, argument: str = "policies"
) -> Family:
    """Return a class, a policy or a callable as a family of policies.

    Args:
        like: A class of policies with a threshold, a policy whose threshold is moved, or a callable value → policy.
        grid: Values of the threshold, strictly rising or falling; those that the policy declares where None.
        record: The record on which they are tried.
        look: Whether values between the scores of the rows are added to those that are declared. A promise needs values
            that no data chose.
        argument: Name of the argument, for errors.
    """
    values = None if grid is None else _ordered(grid)
    if not isinstance(like, ExitPolicy) and not (isinstance(like, type) and issubclass(like, ExitPolicy)):
        if values is None:
            raise _no_values("grid", like)
        return Family("value", values, like, like(values[0]), None)
    free = like if isinstance(like, type) else _part_with_threshold(like)
    threshold = None if free is None else free.tunable
    if threshold is None:
        raise _no_values(argument, like)

    def build(value: float) -> ExitPolicy:
        if isinstance(like, type):
            return like(**{threshold.field: int(value) if threshold.whole and value == int(value) else value})
        assert isinstance(free, ExitPolicy)
        return _exchanged(like, free, free.with_threshold(value))

    if values is None:
        values = _accepted(build, threshold.values(record.num_steps, record.width))
        if not values:
            raise _no_values(argument, like)
    policy = build(values[len(values) // 2])
    record.check(policy)
    part = _part_with_threshold(policy)
    assert part is not None
    family = Family(threshold.field, values, build, policy, part)
    if look and grid is None and not threshold.whole:
        found = [value for value in family.between(record) if values[0] <= value <= values[-1]]
        family = replace(family, values=tuple(sorted({*values, *found})))
    return family


def _accepted(build: Callable[[float], ExitPolicy], values: Sequence[float]) -> tuple[float, ...]:
    """Return the values that the class accepts: a normalised entropy ends at 1, say."""

    def accepts(value: float) -> bool:
        try:
            build(value)
        except ArgumentError:
            return False
        return True

    if len(values) and accepts(values[0]) and accepts(values[-1]):
        return tuple(values)
    return tuple(value for value in values if accepts(value))


def _part_with_threshold(policy: ExitPolicy) -> ExitPolicy | None:
    """Return the part whose threshold is the policy's: itself, or the only one inside that has any."""
    found = [part for part in all_within(policy) if part.tunable is not None]
    return found[0] if len(found) == 1 or policy.tunable is not None else None


def _exchanged(policy: ExitPolicy, part: ExitPolicy, new: ExitPolicy) -> ExitPolicy:
    """Return the policy with `new` in the place of a part of it."""
    if policy is part:
        return new
    changes: dict[str, Any] = {}
    for field in fields(policy):  # type: ignore[arg-type]  # all policies are dataclasses
        value = getattr(policy, field.name)
        if isinstance(value, ExitPolicy):
            changes[field.name] = _exchanged(value, part, new)
        elif isinstance(value, tuple) and value and isinstance(value[0], ExitPolicy):
            changes[field.name] = tuple(_exchanged(each, part, new) for each in value)
    return replace(policy, **changes) if changes else policy  # type: ignore[type-var]


def _ordered(grid: Iterable[float]) -> tuple[float, ...]:
    values = tuple(float(value) for value in grid)
    moves = np.sign(np.diff(values))
    if not values or not np.isfinite(values).all() or abs(moves.sum()) < len(moves):
        raise ArgumentError(
            "grid",
            expected="at least one finite value, strictly rising or strictly falling",
            got=f"{list(values[:8])}{' …' if len(values) > 8 else ''}",
            remedy="Sort them and leave out repetitions.",
        )
    return values


def _no_values(argument: str, like: Any) -> ArgumentError:
    return ArgumentError(
        argument,
        expected="a class of policies with one threshold, a policy with one inside, or a callable with a grid",
        got=getattr(like, "__name__", repr(like)),
        remedy="Say what differs: lambda q: policies.Quantile(q) | policies.Patience(3), with grid=[…].",
    )


def _short_between(low: float, high: float) -> float:
    """Return a number between two others, with as few digits as distinguish it from both."""
    middle = (low + high) / 2.0
    return next((short for digits in range(1, 17) if low < (short := round(middle, digits)) < high), middle)
