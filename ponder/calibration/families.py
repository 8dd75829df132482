"""Families of policies that differ in one threshold, with exits under all values from one pass.

A policy scores how ready each row is to exit at each step (`ExitPolicy.scores`). A row exits at the
first step whose score crosses the threshold, so the running maximum of its scores gives the exits
under any number of thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from ponder.calibration.records import Floats, Ints, Record, step_outputs
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, Threshold, all_within
from ponder.policies.combine import Certified
from ponder.policies.counting import Patience

__all__ = ["Family", "FamilyLike", "exchanged", "family_of", "part_with_threshold"]

FamilyLike: TypeAlias = type[ExitPolicy] | ExitPolicy | Callable[[float], ExitPolicy]
_CELLS = 2**16
"""Rows × thresholds at a time: they fit into a cache, and a walk may end before the last."""
_BETWEEN = 201
"""The number of values between scores."""
_TOLERANCES = 41
"""The number of tolerances of `Patience`."""


@dataclass(frozen=True, eq=False)
class Family:
    """Policies that differ in one threshold.

    Args:
        threshold: Name of the threshold; ``"value"`` if a callable builds the policies.
        values: Its values, rising or falling.
        build: A function from a value to its policy.
        policy: One of the policies.
        free: The part of `policy` whose threshold is moved; None if a callable builds the policies.
    """

    threshold: str
    values: tuple[float, ...]
    build: Callable[[float], ExitPolicy]
    policy: ExitPolicy
    free: ExitPolicy | None

    def late_first(self) -> Ints:
        """Return the places of the values from the latest exits to the earliest.

        The order must not depend on data, or fixed-sequence testing is not valid. So it is read
        from the declared threshold; values of a callable keep the order of the caller.
        """
        places = np.arange(len(self.values))
        if self.free is None:
            return places
        rising = self.values[0] < self.values[-1]
        return places[::-1] if rising == _tunable(self.free).higher_exits_later else places

    def exit_steps(self, record: Record, places: Ints | None = None) -> Iterator[tuple[Ints, Ints]]:
        """Yield places of values, `(thresholds,)`, with exit steps, `(thresholds, rows)`."""
        places = np.arange(len(self.values)) if places is None else places
        size = max(_CELLS // len(record), 1)
        # In a group, the exit of one row changes those of others: each threshold is replayed.
        are_grouped = "group" in self.policy.needs
        reached = None
        if self.free is not None and not are_grouped:
            reached = self._reached(record)
        for start in range(0, len(places), size):
            block = places[start : start + size]
            if reached is None:
                steps = [record.exit_steps(self.build(self.values[place])) for place in block]
                yield block, np.stack(steps).astype(np.intp)
            else:
                yield block, self._crossings(reached, block)

    def _reached(self, record: Record) -> Floats:
        """Return the running maximum of the readiness, `(rows, steps − 1)`."""
        return np.fmax.accumulate(self.policy.scores(record, self.free)[:, :-1], axis=1)

    def _crossings(self, reached: Any, places: Ints) -> Ints:
        """Return the first steps whose readiness crosses each threshold, `(thresholds, rows)`."""
        threshold = _tunable(self.free)
        sign = 1.0 if threshold.higher_exits_later else -1.0
        bars: Any = sign * np.asarray(self.values)[places, None]
        single = reached.astype(np.float32)
        if np.array_equal(single, reached, equal_nan=True):
            # They were computed in float32, in which a run compares them, too.
            reached = single
            bars = bars.astype(np.float32)
        crosses = np.greater_equal if threshold.inclusive else np.greater
        steps = np.ones((len(places), len(reached)), dtype=np.intp)
        for column in reached.T:
            steps += ~crosses(column, bars)
        return steps

    def with_values_between(self, record: Record) -> Family:
        """Return the family with further values, at quantiles of the scores of the rows.

        Labels are not read.
        """
        reached = self._reached(record)
        reached = np.sort(reached[np.isfinite(reached)])
        if len(reached) > _BETWEEN:
            reached = reached[np.linspace(0, len(reached) - 1, _BETWEEN).astype(np.intp)]
        sign = 1.0 if _tunable(self.free).higher_exits_later else -1.0
        values = set(self.values)
        for low, high in pairwise(np.unique(reached).tolist()):
            value = sign * _short_between(low, high)
            if self.values[0] <= value <= self.values[-1]:
                values.add(value)
        return replace(self, values=tuple(sorted(values)))


def family_of(
    like: FamilyLike,
    grid: Iterable[float] | None,
    record: Record,
    *,
    look: bool = False,
    argument: str = "policies",
) -> Family:
    """Return a class, a policy or a callable as a family of policies.

    Args:
        like: A class of policies with a threshold, a policy whose threshold is moved, or a callable
            value → policy.
        grid: Values of the threshold, strictly rising or falling. By default those that the policy
            declares.
        record: The record on which they are tried.
        look: Whether to look at the record: for values between the scores of its rows, and for
            tolerances of `Patience` if answers are numbers. A promise needs values that do not
            depend on data.
        argument: Name of the argument, for errors.

    Raises:
        ArgumentError: There is no threshold to move, or the grid is not in order.
    """
    values = None if grid is None else _ordered(grid)
    if look and grid is None and like is Patience and record.meaning.numbers:
        return _family_of_tolerances(record)
    free = part_with_threshold(like)
    if free is None:
        if values is None or isinstance(like, ExitPolicy):
            raise ArgumentError(
                argument,
                expected="a class of policies with one threshold, a policy with one inside, or a "
                "callable with a grid",
                got=getattr(like, "__name__", repr(like)),
                remedy="Say what differs: lambda q: policies.Quantile(q) | policies.Patience(3), "
                "with grid=[…].",
            )
        make: Any = like
        return Family("value", values, make, make(values[0]), None)
    threshold = _tunable(free)
    build = _builder(like, free)
    if values is None:
        values = tuple(threshold.values(record.num_steps, record.width))
        # A policy may refuse some of them: the threshold of a normalised entropy ends at 1.
        if not (_accepts(build, values[0]) and _accepts(build, values[-1])):
            values = tuple(value for value in values if _accepts(build, value))
    policy = build(values[len(values) // 2])
    record.check(policy)
    family = Family(threshold.field, values, build, policy, part_with_threshold(policy))
    if look and grid is None and not threshold.whole:
        return family.with_values_between(record)
    return family


def _family_of_tolerances(record: Record) -> Family:
    """Return patience with one agreement, of numbers, under several tolerances."""

    def build(tolerance: float) -> ExitPolicy:
        return Patience(1, tolerance=tolerance)

    values = _tolerances(record)
    return Family("tolerance", values, build, build(values[0]), None)


def _builder(like: FamilyLike, free: Any) -> Callable[[float], ExitPolicy]:
    """Return a function from a threshold to a policy, from a policy or class with the free part."""
    threshold = _tunable(free)

    def build(value: float) -> ExitPolicy:
        if isinstance(like, ExitPolicy):
            return exchanged(like, free, free.with_threshold(value))
        make: Any = like
        policy: ExitPolicy = make(**threshold.argument(value))
        return policy

    return build


def _tunable(part: Any) -> Threshold:
    threshold: Threshold = part.tunable
    return threshold


def _accepts(build: Callable[[float], ExitPolicy], value: float) -> bool:
    try:
        build(value)
    except ArgumentError:
        return False
    return True


def part_with_threshold(like: FamilyLike) -> Any:
    """Return the part whose threshold is moved: a class, or the only part of a policy that has one.

    None if there is no such part, or if a certificate holds for one value of it.
    """
    if isinstance(like, ExitPolicy):
        parts = all_within(like)
        tunable = [part for part in parts if part.tunable is not None]
        is_certified = any(isinstance(part, Certified) for part in parts)
        return tunable[0] if len(tunable) == 1 and not is_certified else None
    if isinstance(like, type) and issubclass(like, ExitPolicy) and like.tunable is not None:
        return like
    return None


def exchanged(policy: ExitPolicy, part: ExitPolicy, new: ExitPolicy) -> ExitPolicy:
    """Return the policy with `new` in the place of a part of it."""
    if policy is part:
        return new
    changes: dict[str, Any] = {}
    for field in fields(policy):  # type: ignore[arg-type]  # all policies are dataclasses
        value = getattr(policy, field.name)
        if isinstance(value, ExitPolicy):
            changes[field.name] = exchanged(value, part, new)
        elif isinstance(value, tuple) and value and isinstance(value[0], ExitPolicy):
            changes[field.name] = tuple(exchanged(each, part, new) for each in value)
    return replace(policy, **changes) if changes else policy  # type: ignore[type-var]


def _ordered(grid: Iterable[float]) -> tuple[float, ...]:
    values = tuple(float(value) for value in grid)
    moves = np.sign(np.diff(values))
    if not values or not np.isfinite(values).all() or abs(moves.sum()) < len(moves):
        expected = "at least one finite value, strictly rising or strictly falling"
        got = f"{list(values[:8])}{' …' if len(values) > 8 else ''}"
        remedy = "Sort them and leave out repetitions."
        raise ArgumentError("grid", expected=expected, got=got, remedy=remedy)
    return values


def _tolerances(record: Record) -> tuple[float, ...]:
    """Return tolerances between the changes of numbers at all steps, and one above them all."""
    outputs = np.stack(step_outputs(record), axis=1).reshape(len(record), record.num_steps, -1)
    changes = np.abs(np.diff(outputs, axis=1)).max(-1)
    changes = np.unique(changes[np.isfinite(changes) & (changes > 0)])
    if not len(changes):
        return (1.0,)
    edges = [*changes.tolist(), 2.0 * float(changes[-1])]
    places = np.unique(np.linspace(0, len(changes) - 1, _TOLERANCES).astype(np.intp))
    return tuple(_short_between(edges[place], edges[place + 1]) for place in places)


def _short_between(low: float, high: float) -> float:
    """Return a number between two others, with as few digits as distinguish it from both."""
    middle = (low + high) / 2.0
    for digits in range(1, 17):
        short = round(middle, digits)
        if low < short < high:
            return short
    return middle
