"""Families of policies that differ in one threshold, with the exits under all its values from one pass.

A policy scores how ready each row is to exit at each step (`ExitPolicy.scores`). A row exits at the
first step whose score crosses the bar, so the running maximum of its scores gives the exits under
any number of bars.
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
_CELLS = (
    2**16
)  # rows × thresholds at a time: they fit into a cache, and a walk may end before the last
_BETWEEN = 201
_TOLERANCES = 41


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

        The order must not depend on data, or fixed-sequence testing promises nothing. So it is read
        from the declared threshold; values of a callable stay in the order in which they were
        given.
        """
        places = np.arange(len(self.values))
        if self.free is None:
            return places
        rising = self.values[0] < self.values[-1]
        return places[::-1] if rising == _tunable(self.free).higher_exits_later else places

    def exit_steps(self, record: Record, places: Ints | None = None) -> Iterator[tuple[Ints, Ints]]:
        """Yield the exit steps `(thresholds, rows)` of blocks of the values, with their places, `(thresholds,)`."""
        places = np.arange(len(self.values)) if places is None else places
        size = max(_CELLS // len(record), 1)
        together = "group" in self.policy.needs  # where the exits of one row move those of others
        reached = None if self.free is None or together else self._reached(record)
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
        threshold = _tunable(self.free)
        bars: Any = np.asarray(self.values)[places, None] * (
            1.0 if threshold.higher_exits_later else -1.0
        )
        single = reached.astype(np.float32)
        if np.array_equal(
            single, reached, equal_nan=True
        ):  # computed in float32, in which a run compares them too
            reached = single
            bars = bars.astype(np.float32)
        crosses = np.greater_equal if threshold.inclusive else np.greater
        steps = np.ones((len(places), len(reached)), dtype=np.intp)
        for column in reached.T:
            steps += ~crosses(column, bars)
        return steps

    def with_values_between(self, record: Record) -> Family:
        """Return the family with values between the scores of the rows added, each of which moves about as many exits.

        No label takes part.
        """
        reached = self._reached(record)
        reached = np.sort(reached[np.isfinite(reached)])
        if len(reached) > _BETWEEN:
            reached = reached[np.linspace(0, len(reached) - 1, _BETWEEN).astype(np.intp)]
        sign = 1.0 if _tunable(self.free).higher_exits_later else -1.0
        between = {
            sign * _short_between(low, high) for low, high in pairwise(np.unique(reached).tolist())
        }
        inside = {value for value in between if self.values[0] <= value <= self.values[-1]}
        return replace(self, values=tuple(sorted({*self.values, *inside})))


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
        grid: Values of the threshold, strictly rising or falling; those that the policy declares
            where None.
        record: The record on which they are tried.
        look: Whether values between the scores of the rows are tried too, and tolerances of
            `Patience` where answers are numbers. A promise needs values that no data chose.
        argument: Name of the argument, for errors.
    """
    values = None if grid is None else _ordered(grid)
    if look and grid is None and like is Patience and record.meaning.numbers:

        def patient(tolerance: float) -> ExitPolicy:
            return Patience(1, tolerance=tolerance)

        values = _tolerances(record)
        return Family("tolerance", values, patient, patient(values[0]), None)
    free = part_with_threshold(like)
    if free is None and values is not None and not isinstance(like, ExitPolicy):
        make: Any = like
        return Family("value", values, make, make(values[0]), None)
    if free is None:
        expected = "a class of policies with one threshold, a policy with one inside, or a callable with a grid"
        remedy = "Say what differs: lambda q: policies.Quantile(q) | policies.Patience(3), with grid=[…]."
        raise ArgumentError(
            argument, expected=expected, got=getattr(like, "__name__", repr(like)), remedy=remedy
        )
    threshold = _tunable(free)

    def build(value: float) -> ExitPolicy:
        if isinstance(like, ExitPolicy):
            return exchanged(like, free, free.with_threshold(value))
        make: Any = like
        made: ExitPolicy = make(**threshold.argument(value))
        return made

    if values is None:
        values = tuple(threshold.values(record.num_steps, record.width))
        if not (
            _accepts(build, values[0]) and _accepts(build, values[-1])
        ):  # a normalised entropy ends at 1, say
            values = tuple(value for value in values if _accepts(build, value))
    policy = build(values[len(values) // 2])
    record.check(policy)
    family = Family(threshold.field, values, build, policy, part_with_threshold(policy))
    if look and grid is None and not threshold.whole:
        return family.with_values_between(record)
    return family


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
    """Return the part whose threshold is moved: a class or policy itself, or the only part inside that has one."""
    if isinstance(like, ExitPolicy):
        parts = all_within(like)
        found = [part for part in parts if part.tunable is not None]
        promised = any(
            isinstance(part, Certified) for part in parts
        )  # a certificate is about one value
        return found[0] if len(found) == 1 and not promised else None
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
    """Return tolerances between the changes that the steps make to numbers, and one above them all."""
    outputs = np.stack(step_outputs(record), axis=1).reshape(len(record), record.num_steps, -1)
    changes = np.abs(np.diff(outputs, axis=1)).max(-1)
    changes = np.unique(changes[np.isfinite(changes) & (changes > 0)])
    if not len(changes):
        return (1.0,)
    edges = np.append(
        changes, 2.0 * changes[-1]
    ).tolist()  # the greatest change is below its double
    places = np.unique(np.linspace(0, len(changes) - 1, _TOLERANCES).astype(np.intp))
    return tuple(_short_between(edges[place], edges[place + 1]) for place in places)


def _short_between(low: float, high: float) -> float:
    """Return a number between two others, with as few digits as distinguish it from both."""
    middle = (low + high) / 2.0
    return next(
        (short for digits in range(1, 17) if low < (short := round(middle, digits)) < high), middle
    )
