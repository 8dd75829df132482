"""Families of policies that differ in one threshold, with all their exits from one pass.

A policy scores how ready each row is to exit at each step (`ExitPolicy.scores`). A row exits at the
first step whose score crosses the threshold, so the running maximum of its scores gives the exits
under any number of thresholds. `family_of` makes a family of a class, a policy or a callable;
`Family.exit_steps` gives the exits, block by block.
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
TunablePart: TypeAlias = type[ExitPolicy] | ExitPolicy
# Rows × thresholds of a block: it fits into a cache, and a test may stop before the last block.
_CELLS = 2**16
_BETWEEN = 201  # scores between which values are added
_TOLERANCES = 41


@dataclass(frozen=True, eq=False)
class Family:
    """Policies that differ in one threshold.

    Args:
        threshold: Name of the threshold; ``"value"`` if a callable builds the policies.
        values: Its values, rising or falling.
        build: Makes the policy of a value.
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

        Fixed-sequence testing needs an order that does not depend on data. It is read from the
        declared threshold; the values of a callable stay in the order in which they were passed.
        """
        places = np.arange(len(self.values))
        if self.free is None:
            return places
        rising = self.values[0] < self.values[-1]
        if rising == _tunable(self.free).higher_exits_later:
            return places[::-1]
        return places

    def exit_steps(self, record: Record, places: Ints | None = None) -> Iterator[tuple[Ints, Ints]]:
        """Yield places of values, `(thresholds,)`, and the exit steps there, `(thresholds, rows)`.

        Args:
            record: The full-depth run.
            places: Which of the values, in which order; by default all.
        """
        if places is None:
            places = np.arange(len(self.values))
        size = max(_CELLS // len(record), 1)
        # If rows are decided together, the exit of one moves those of others, so that each value is
        # replayed.
        decided_together = "group" in self.policy.needs
        reached = None
        if self.free is not None and not decided_together:
            reached = self._highest_scores(record)
        for start in range(0, len(places), size):
            block = places[start : start + size]
            if reached is None:
                steps = [record.exit_steps(self.build(self.values[place])) for place in block]
                yield block, np.stack(steps).astype(np.intp)
            else:
                yield block, self._crossings(reached, block)

    def _highest_scores(self, record: Record) -> Floats:
        """Return the running maximum of the scores, `(rows, steps − 1)`."""
        return np.fmax.accumulate(self.policy.scores(record, self.free)[:, :-1], axis=1)

    def _sign(self) -> float:
        """Return −1 if rows exit below the threshold, since scores are then negated."""
        if _tunable(self.free).higher_exits_later:
            return 1.0
        return -1.0

    def _crossings(self, reached: Floats, places: Ints) -> Ints:
        """Return exit steps `(thresholds, rows)`: 1 + the number of steps that do not cross."""
        thresholds = self._sign() * np.asarray(self.values)[places, None]
        single = reached.astype(np.float32)
        if np.array_equal(single, reached, equal_nan=True):
            # The scores were computed in float32, in which a run compares them with the threshold.
            reached = single
            thresholds = thresholds.astype(np.float32)
        is_inclusive = _tunable(self.free).inclusive
        steps = np.ones((len(places), len(reached)), dtype=np.intp)
        for column in reached.T:
            if is_inclusive:
                steps += ~(column >= thresholds)
            else:
                steps += ~(column > thresholds)
        return steps

    def with_values_between(self, record: Record) -> Family:
        """Return the family with values added between the scores of the rows.

        Each of these moves about as many exits. Labels are not read.
        """
        reached = self._highest_scores(record)
        scores = np.sort(reached[np.isfinite(reached)])
        if len(scores) > _BETWEEN:
            scores = scores[_evenly_spaced(len(scores), _BETWEEN)]
        lowest = self.values[0]
        highest = self.values[-1]
        values = set(self.values)
        for low, high in pairwise(np.unique(scores).tolist()):
            value = self._sign() * _short_between(low, high)
            if lowest <= value <= highest:
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
        look: Whether to try values between the scores of the rows too, and tolerances of `Patience`
            if answers are numbers. A promise needs values that no data chose.
        argument: Name of the argument, for errors.

    Raises:
        ArgumentError: No threshold, or several, can be moved.
    """
    may_add_values = look and grid is None
    if may_add_values and like is Patience and record.meaning.numbers:
        return _tolerance_family(record)
    values: tuple[float, ...] | None = None
    if grid is not None:
        values = _ordered(grid)
    free = part_with_threshold(like)
    if free is None:
        if values is None or isinstance(like, ExitPolicy):
            raise _no_threshold(like, argument)
        make: Callable[[Any], ExitPolicy] = like
        return Family("value", values, make, make(values[0]), None)
    threshold = _tunable(free)
    build = _builder(like, free)
    if values is None:
        values = _declared_values(threshold, build, record)
    policy = build(values[len(values) // 2])
    record.check(policy)
    family = Family(threshold.field, values, build, policy, part_with_threshold(policy))
    if may_add_values and not threshold.whole:
        return family.with_values_between(record)
    return family


def _tolerance_family(record: Record) -> Family:
    """Return `Patience(1)` with tolerances between the changes of the outputs."""

    def build(tolerance: float) -> ExitPolicy:
        return Patience(1, tolerance=tolerance)

    values = _tolerances(record)
    return Family("tolerance", values, build, build(values[0]), None)


def _builder(like: FamilyLike, free: TunablePart) -> Callable[[float], ExitPolicy]:
    """Return a function that makes the policy of a value of the threshold of `free`."""
    if isinstance(like, ExitPolicy):
        policy: ExitPolicy = like
        part: Any = free

        def with_value(value: float) -> ExitPolicy:
            return exchanged(policy, part, part.with_threshold(value))

        return with_value
    make: Callable[..., ExitPolicy] = like
    threshold = _tunable(free)

    def build(value: float) -> ExitPolicy:
        return make(**threshold.argument(value))

    return build


def _declared_values(
    threshold: Threshold, build: Callable[[float], ExitPolicy], record: Record
) -> tuple[float, ...]:
    """Return the values that a policy declares, those excepted that its constructor refuses."""
    values = tuple(threshold.values(record.num_steps, record.width))
    if _accepts(build, values[0]) and _accepts(build, values[-1]):
        return values
    return tuple(value for value in values if _accepts(build, value))  # a normalised entropy is ≤ 1


def _no_threshold(like: FamilyLike, argument: str) -> ArgumentError:
    return ArgumentError(
        argument,
        expected="a class of policies with one threshold, a policy with one inside, "
        "or a callable with a grid",
        got=getattr(like, "__name__", repr(like)),
        remedy="Pass a callable: lambda q: policies.Quantile(q) | policies.Patience(3), "
        "with grid=[…].",
    )


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
    """Return the part whose threshold is moved; None unless there is exactly one.

    It is a class or a policy itself, or the only policy inside that has a threshold.
    """
    if isinstance(like, ExitPolicy):
        parts = all_within(like)
        tunable = [part for part in parts if part.tunable is not None]
        # The threshold of a certified policy must stay: its certificate is about one value.
        certified = any(isinstance(part, Certified) for part in parts)
        if len(tunable) != 1 or certified:
            return None
        return tunable[0]
    is_class = isinstance(like, type) and issubclass(like, ExitPolicy)
    if not is_class or getattr(like, "tunable", None) is None:
        return None
    return like


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
    if not changes:
        return policy
    return replace(policy, **changes)  # type: ignore[type-var]


def _ordered(grid: Iterable[float]) -> tuple[float, ...]:
    """Return a grid as a tuple; refuse one that is empty, or neither rising nor falling."""
    values = tuple(float(value) for value in grid)
    directions = np.sign(np.diff(values))
    monotone = abs(directions.sum()) == len(directions)
    if not values or not np.isfinite(values).all() or not monotone:
        more = " …" if len(values) > 8 else ""
        raise ArgumentError(
            "grid",
            expected="at least one finite value, strictly rising or strictly falling",
            got=f"{list(values[:8])}{more}",
            remedy="Sort them and leave out repetitions.",
        )
    return values


def _tolerances(record: Record) -> tuple[float, ...]:
    """Return tolerances between the changes of the outputs from step to step, and one above all."""
    outputs = np.stack(step_outputs(record), axis=1).reshape(len(record), record.num_steps, -1)
    changes = np.abs(np.diff(outputs, axis=1)).max(axis=-1)
    changes = np.unique(changes[np.isfinite(changes) & (changes > 0)])
    if not len(changes):
        return (1.0,)
    above_all = 2.0 * float(changes[-1])
    edges = [*changes.tolist(), above_all]
    places = np.unique(_evenly_spaced(len(changes), _TOLERANCES))
    return tuple(_short_between(edges[place], edges[place + 1]) for place in places)


def _evenly_spaced(size: int, count: int) -> Ints:
    """Return `count` places from the first to the last of `size`, at about equal distances."""
    return np.linspace(0, size - 1, count).astype(np.intp)


def _short_between(low: float, high: float) -> float:
    """Return a number between two others, with as few digits as distinguish it from both."""
    middle = (low + high) / 2.0
    for digits in range(1, 17):
        short = round(middle, digits)
        if low < short < high:
            return short
    return middle
