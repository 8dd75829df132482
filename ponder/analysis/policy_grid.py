"""A grid of policies: one policy for every value of a threshold."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ponder._utils.trees import Tree
from ponder.engine.replay import check_replay, replay
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.recording import Recording
from ponder.policies.base import ExitPolicy, PolicyBatch, StepView, ThresholdPolicy, all_within
from ponder.policies.certified import is_certified
from ponder.policies.patience import Patience
from ponder.policies.threshold import Threshold

__all__ = [
    "PolicyGrid",
    "PolicyGridLike",
    "as_policy_grid",
    "at_threshold",
    "grids_of",
    "leaves_later",
    "part_with_threshold",
    "patience_on_numbers",
]

_LIBRARY = __name__.partition(".")[0]
_BETWEEN = 201
_TOLERANCES = 41
_MANY = 0.05  # of the rows, beyond the range that a policy declares
_ALONE = (
    "Pass policies.Confidence, say, or one policy, whose threshold is moved; sweep and calibrate try a callable by "
    "itself, such as lambda t: policies.Confidence(t) | policies.Patience(3), with grid=[…]."
)
PolicyGridLike = type[ExitPolicy] | ExitPolicy | Callable[[float], ExitPolicy]


@dataclass(frozen=True, eq=False)
class PolicyGrid:
    """A family of policies that differ in one threshold, in its order.

    Args:
        threshold: Name of what differs between the policies; ``"value"`` where a callable makes of its values something
            else than thresholds.
        values: Its values, strictly rising or strictly falling, `(thresholds,)`.
        policies: The policy of each value.
        declared: Whether the values are the range that the policy declares, and not those that a caller gave.
    """

    threshold: str
    values: tuple[float, ...]
    policies: tuple[ExitPolicy, ...]
    declared: bool = False

    @property
    def exits_get_later(self) -> bool | None:
        """Whether rows leave later and later along the grid (or earlier and earlier), whatever the data.

        This is told by what the policies declare, before any data is seen; None where they do not tell.
        """
        moves = {leaves_later(one, other) for one, other in itertools.pairwise(self.policies)}
        return moves.pop() if len(moves) == 1 else None

    def exit_steps(self, trajectory: Recording, *, trusting: bool = False) -> Tensor:
        """The step at which each row leaves under each policy, `(thresholds, batch)` long.

        Args:
            trajectory: What the policies are tried on.
            trusting: Whether classes of users are believed to have a statistic that does not depend on the threshold.
        """
        places = self.places(trajectory, trusting=trusting)
        if places is None:
            return torch.stack([replay(trajectory, policy).exit_step for policy in self.policies])
        order, rank = places
        each = torch.arange(len(self.values), device=rank.device).expand(rank.shape[0], -1).contiguous()
        return (torch.searchsorted(rank, each, right=True) + 1).T[order.argsort()]

    def places(self, trajectory: Recording, *, trusting: bool = False) -> tuple[Tensor, Tensor] | None:
        """Where each row leaves, from one pass, without an exit step for every threshold.

        Returns:
            None where one pass does not tell. Else an order of the values from early to late, `(thresholds,)`, and for
            each row and each step but the last the number of policies, in this order, that let it go by then,
            `(batch, steps − 1)` long.
        """
        free = self._free()
        if free is None or not len(trajectory):
            return None
        threshold = free.tunable
        readiness = _readiness(trajectory, self.policies[0], free)
        own = not type(free).__module__.startswith(f"{_LIBRARY}.")
        trusting = trusting or not own
        if not trusting and self._statistic_moves(trajectory, free, readiness):
            return None
        raw, readiness = readiness, readiness.cummax(1).values
        values = torch.tensor(self.values, dtype=torch.float64, device=readiness.device)
        order = (values if threshold.higher_exits_later else -values).argsort()
        bounds = values[order].to(readiness.dtype)
        bounds = bounds if threshold.higher_exits_later else -bounds
        if own and self.declared:
            _look_at_range(free, raw, float(bounds[-1]))
        return order, torch.searchsorted(bounds.contiguous(), readiness.contiguous(), right=threshold.inclusive)

    def between(self, trajectory: Recording) -> list[float]:
        """Values of the threshold between the statistics of the rows, where one pass tells them; no label takes part.

        They lie so that about the same number of exits change from one to the next.
        """
        free = self._free()
        if free is None or not len(trajectory) or trajectory.num_steps < 2:
            return []
        reached = _readiness(trajectory, self.policies[0], free).cummax(1).values.double().flatten()
        reached = reached[reached.isfinite()].sort().values
        if len(reached) > _BETWEEN:
            reached = reached[torch.linspace(0, len(reached) - 1, _BETWEEN).long()]
        reached = reached.unique()
        middles = [_between(low, high) for low, high in itertools.pairwise(reached.tolist())]
        return middles if free.tunable.higher_exits_later else [-value for value in reversed(middles)]

    def _free(self) -> ThresholdPolicy | None:
        """The one policy inside the first that differs between all of them in its threshold and in nothing else.

        None, too, where a class decides otherwise than the readiness that it inherits says.
        """
        if not all(_tells(policy) for policy in all_within(self.policies[0])):
            return None
        candidates = (leaf for leaf in _leaves(self.policies[0]) if isinstance(leaf, ThresholdPolicy))
        return next((leaf for leaf in candidates if self._varies(leaf)), None)

    def _statistic_moves(self, trajectory: Recording, free: ThresholdPolicy, first: Tensor) -> bool:
        """Whether the statistic depends on the threshold, which it must not: two more values are asked."""
        for place in (len(self.values) // 2, -1):
            moved = free.with_threshold(self.values[place])
            other = _readiness(trajectory, _exchanged(self.policies[0], {id(free): moved}), moved)
            if not torch.equal(first.nan_to_num(), other.nan_to_num()):
                return True
        return False

    def named(self) -> PolicyGrid:
        """The grid under the name of the threshold that alone differs, where there is one with these values."""
        leaves = (leaf for leaf in _leaves(self.policies[0]) if leaf.tunable is not None)
        moved = next((leaf.tunable for leaf in leaves if self._varies(leaf)), None)
        return self if moved is None else dataclasses.replace(self, threshold=moved.field)

    def _varies(self, leaf: ExitPolicy) -> bool:
        """Whether moving the threshold of `leaf`, a part of the first policy, gives all of them."""
        pairs = zip(self.policies, self.values, strict=True)
        try:
            return all(
                policy == _exchanged(self.policies[0], {id(leaf): leaf.with_threshold(value)})
                for policy, value in pairs
            )
        except Exception:  # the values mean nothing to this leaf, whose class, a user's perhaps, raises what it likes
            return False


def _look_at_range(policy: ThresholdPolicy, readiness: Tensor, latest: float) -> None:
    """Warn where rows leave early under all values that a user's class declares: its statistic has another range.

    Args:
        policy: The policy of the threshold.
        readiness: That of each row at each step but the last, `(batch, steps − 1)`; infinite where others let it go.
        latest: The last value, as readiness.
    """
    later = readiness.isfinite() & (readiness > latest + 1e-6 * max(1.0, abs(latest)))
    beyond = float(later.any(1).double().mean())
    if beyond > _MANY:
        threshold = policy.tunable
        side, end = ("above", "high") if threshold.higher_exits_later else ("below", "low")
        value = latest if threshold.higher_exits_later else -latest
        warnings.warn(
            f"{type(policy).__name__}: the statistic of {beyond:.0%} of the rows is {side} {value:g}, the last "
            f"{threshold.field} of the range that is declared, so that they leave early whatever is tried. Declare the "
            f"range of the statistic, Threshold({threshold.field!r}, {threshold.leaves!r}, {end}=…), or pass a grid.",
            stacklevel=2,
        )


def _between(low: float, high: float) -> float:
    """A number between two others, with as few digits as tell it from both."""
    middle = (low + high) / 2.0
    return next((short for digits in range(1, 17) if low < (short := round(middle, digits)) < high), middle)


def as_policy_grid(
    like: PolicyGridLike,
    grid: Iterable[float] | None,
    trajectory: Recording,
    *,
    look: bool = False,
    argument: str = "policies",
    takes_grid: bool = True,
) -> PolicyGrid:
    """What a user passes, as policies that have been checked against a trajectory.

    Args:
        like: A class of policies with a threshold, a policy whose threshold is to be moved, or a callable
            value → policy, which is given whole numbers as such.
        grid: Values of the threshold, strictly rising or falling; those that the policy declares where None.
        trajectory: What the policies will be tried on.
        look: Whether, where no grid is given, values between the statistics of the rows are tried too: all rows of a
            sure model may leave between two of those that are declared. A certificate wants values that no data
            chose. Of numbers, the class `Patience` is tried with tolerances: nobody said when two of them are the same.
        argument: What the user calls `like`.
        takes_grid: Whether the user can pass a grid beside it.
    """
    if look and grid is None and like is Patience and trajectory.meaning.numbers and trajectory.num_steps > 1:
        return patience_on_numbers(trajectory)
    build, declared, default = _builder(like, trajectory, argument, takes_grid)
    given = default if grid is None else _numbers(grid)
    values = default if grid is None else _ordered(given)
    if look and grid is None and declared is not None and not declared.whole and len(default) > 1:
        tried = PolicyGrid(declared.field, tuple(default), tuple(map(build, default)), declared=True)
        found = (value for value in tried.between(trajectory) if default[0] <= value <= default[-1])
        between = [value for value in found if _accepts(build, value, trajectory)]
        values = sorted({*default, *between})
    if not values and not takes_grid:
        raise ArgumentError(
            argument,
            expected="classes of policies, or policies whose threshold is moved: a callable does not tell its values",
            got=getattr(like, "__name__", type(like).__name__),
            remedy=_ALONE,
        )
    if not values:
        raise ArgumentError(
            "grid",
            expected="values of the threshold, since a callable does not tell them",
            got="None",
            remedy="Pass grid=[0.1, 0.2, …].",
        )
    made = [_policy_of(build, value) for value in (given if declared is None else values)]
    for policy in made:
        check_replay(trajectory, policy)
    if declared is None:
        return PolicyGrid("value", tuple(values), tuple(made)).named()
    return PolicyGrid(declared.field, tuple(values), tuple(made), declared=grid is None)


def patience_on_numbers(trajectory: Recording) -> PolicyGrid:
    """Patience of one step, with tolerances between the changes that the steps make, and one above them all."""
    changes = trajectory.outputs.detach().double().diff(dim=1).abs()
    changes = (changes.flatten(2).amax(2) if changes.dim() > 2 else changes).flatten().sort().values
    changes = changes[changes.isfinite()]
    if not len(changes):
        return PolicyGrid("tolerance", (1.0,), (Patience(1, tolerance=1.0),))
    places = torch.linspace(0, len(changes) - 1, _TOLERANCES).long()
    lows, all_changes = changes[places.to(changes.device)].unique(), changes.unique()
    ends = torch.cat([all_changes, 2.0 * all_changes[-1:]])  # the greatest change is below its double
    highs = ends[torch.searchsorted(all_changes, lows, right=True)]
    made = map(_between, lows.tolist(), highs.tolist())
    tolerances = tuple(value for value in made if value > 0.0) or (1.0,)
    return PolicyGrid("tolerance", tolerances, tuple(Patience(1, tolerance=each) for each in tolerances))


def grids_of(policy: ExitPolicy, trajectory: Recording, count: int) -> Iterator[PolicyGrid]:
    """For each threshold inside a policy, the policies in which that one is moved and the others stay.

    Args:
        policy: The policy.
        trajectory: What the policies will be tried on.
        count: How many values, where not only whole numbers make sense.
    """
    for leaf in _leaves(policy):
        threshold = leaf.tunable
        if threshold is None:
            continue

        def moved(value: float, leaf: ExitPolicy = leaf) -> ExitPolicy:
            return _exchanged(policy, {id(leaf): leaf.with_threshold(value)})

        values = threshold.values(trajectory.num_steps, trajectory.outputs.shape[-1], count)
        accepted = [value for value in values if _accepts(moved, value, trajectory)]
        if len(accepted) > 1:
            yield PolicyGrid(threshold.field, tuple(accepted), tuple(map(moved, accepted)), declared=True)


def _builder(
    like: PolicyGridLike, trajectory: Recording, argument: str, takes_grid: bool
) -> tuple[Callable[[float], Any], Threshold | None, list[float]]:
    if isinstance(like, ExitPolicy) or (isinstance(like, type) and issubclass(like, ExitPolicy)):
        moved = part_with_threshold(like) if isinstance(like, ExitPolicy) else like
        threshold = None if moved is None else moved.tunable
        if threshold is None:
            raise ArgumentError(
                argument,
                expected="a policy with a threshold"
                + (", or a callable that builds one policy for each value" if takes_grid else ""),
                got=getattr(like, "__name__", repr(like)),
                remedy="Say what differs: lambda q: policies.Quantile(q) | policies.Patience(3), with grid=[…]."
                if takes_grid
                else _ALONE,
            )

        def build(value: float) -> ExitPolicy:
            if isinstance(like, ExitPolicy):
                return at_threshold(like, value)
            try:
                return like(**threshold.argument(value))
            except TypeError as error:
                raise ArgumentTypeError(
                    argument,
                    expected=f"a policy that {threshold.field} alone makes",
                    got=like.__name__,
                    remedy=f"Pass a policy instead of its class, and its {threshold.field} is moved ({error}).",
                ) from error

        values = threshold.values(trajectory.num_steps, trajectory.outputs.shape[-1])
        accepted = [value for value in values if _accepts(build, value, trajectory)]
        if not values:
            raise ArgumentError(
                argument,
                expected=f"a policy whose {threshold.field} has a value for {trajectory.num_steps} steps",
                got=getattr(like, "__name__", repr(like)),
                remedy="Record more steps, or try FixedStep.",
            )
        if not accepted:
            check_replay(trajectory, build(values[len(values) // 2]))  # raises what is wrong with all of them
        return build, threshold, accepted
    if not callable(like):
        raise ArgumentTypeError(
            argument,
            expected="a class of policies, a policy, or a callable value -> policy"
            if takes_grid
            else "a class of policies, a policy, or a list of such",
            got=repr(like) if isinstance(like, str) else type(like).__name__,
            remedy="Pass policies.Confidence, say.",
        )
    return like, None, []


def part_with_threshold(policy: ExitPolicy) -> ExitPolicy | None:
    """The part whose threshold is that of the policy: itself, or the only one inside that has any; None of others.

    A certificate is about one value, and has none.
    """
    if policy.tunable is not None:
        return policy
    if is_certified(policy):
        return None
    found = [leaf for leaf in _leaves(policy) if leaf.tunable is not None]
    return found[0] if len(found) == 1 else None


def at_threshold(policy: ExitPolicy, value: float) -> ExitPolicy:
    """A policy that has a threshold, with that at a value; see `part_with_threshold`."""
    part = part_with_threshold(policy)
    return policy.with_threshold(value) if part is None else _exchanged(policy, {id(part): part.with_threshold(value)})


def _numbers(grid: Iterable[Any]) -> list[float]:
    """The values as numbers of Python, whole ones as such: a callable may make a count of them."""
    try:
        return [int(value) if isinstance(value, Integral) else float(value) for value in grid]
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(
            "grid",
            expected="numbers, strictly rising or strictly falling",
            got=repr(grid),
            remedy="Pass grid=[0.1, 0.2, …].",
        ) from error


def _ordered(given: Sequence[float]) -> list[float]:
    values = [float(value) for value in given]
    steps = [after - before for before, after in itertools.pairwise(values)]
    if not values or not (all(step > 0 for step in steps) or all(step < 0 for step in steps)):
        raise ArgumentError(
            "grid",
            expected="at least one value, strictly rising or strictly falling",
            got=f"{values[:8]}{' …' if len(values) > 8 else ''}",
            remedy="Sort them and leave out what is there twice.",
        )
    return values


def _policy_of(build: Callable[[float], Any], value: float) -> ExitPolicy:
    policy = build(value)
    if not isinstance(policy, ExitPolicy):
        raise ArgumentTypeError(
            "policies",
            expected="a callable that returns an ExitPolicy",
            got=type(policy).__name__,
            remedy="Return policies.Quantile(value), say.",
        )
    return policy


def _accepts(build: Callable[[float], ExitPolicy], value: float, trajectory: Recording) -> bool:
    """Whether a value of the default grid makes sense for this policy (a normalised entropy ends at 1, say)."""
    try:
        check_replay(trajectory, build(value))
    except ArgumentError:
        return False
    return True


def _leaves(policy: ExitPolicy) -> list[ExitPolicy]:
    return [part for part in all_within(policy) if not part.parts()]


def _tells(policy: ExitPolicy) -> bool:
    """Whether `readiness` is about what `decide` does: a class that overrides one has to override both."""
    decides, ready = (
        next(kind for kind in type(policy).__mro__ if name in vars(kind)) for name in ("decide", "readiness")
    )
    return ready is ExitPolicy or issubclass(ready, decides)


def _exchanged(policy: ExitPolicy, new: dict[int, ExitPolicy]) -> ExitPolicy:
    """`policy` with the parts whose ids are keys of `new` exchanged."""
    if id(policy) in new:
        return new[id(policy)]
    kind: Any = type(policy)
    if not dataclasses.is_dataclass(kind):
        if new.keys().isdisjoint(map(id, all_within(policy))):
            return policy
        raise ArgumentTypeError(
            kind.__name__,
            expected="a frozen dataclass, of which a copy with another part can be made",
            got="another class",
            remedy="Write @dataclass(frozen=True) above it.",
        )
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(policy):  # type: ignore[arg-type]
        value = getattr(policy, field.name)
        if isinstance(value, ExitPolicy):
            changes[field.name] = _exchanged(value, new)
        elif isinstance(value, tuple) and value and all(isinstance(part, ExitPolicy) for part in value):
            changes[field.name] = tuple(_exchanged(part, new) for part in value)
    return dataclasses.replace(policy, **changes) if changes else policy  # type: ignore[type-var]


def leaves_later(one: ExitPolicy, other: ExitPolicy) -> bool | None:
    """Whether rows leave later under `other` than under `one`, or earlier, on any data; None where that is open.

    It is known where the two differ in declared thresholds alone, all of which are moved the same way; of a class that
    is no dataclass nobody knows what else differs.
    """
    if not all(dataclasses.is_dataclass(part) for whole in (one, other) for part in all_within(whole)):
        return None
    own, theirs = list(_leaves(one)), list(_leaves(other))
    if len(own) != len(theirs) or _exchanged(one, dict(zip(map(id, own), theirs, strict=True))) != other:
        return None
    moves = {_leaf_later(a, b) for a, b in zip(own, theirs, strict=True) if a != b}
    return moves.pop() if len(moves) == 1 else None


def _leaf_later(one: ExitPolicy, other: ExitPolicy) -> bool | None:
    threshold = one.tunable
    if type(one) is not type(other) or threshold is None:
        return None
    before, after = getattr(one, threshold.field), getattr(other, threshold.field)
    if one.with_threshold(after) != other:
        return None
    return bool((after > before) == threshold.higher_exits_later)


@dataclass(frozen=True)
class _Probe(ExitPolicy):
    """Lets nobody go, and writes down the readiness of every row at every step but the last."""

    policy: ExitPolicy
    free: ExitPolicy
    seen: list[Tensor]

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return self.policy.needs

    def init(self, batch: PolicyBatch) -> Tree:
        return self.policy.init(batch)

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        readiness, state = self.policy.readiness(step, state, self.free)
        readiness = readiness if readiness.is_floating_point() else readiness.double()
        self.seen.append(readiness.masked_fill(readiness.isnan(), -torch.inf))
        return False, state


def _readiness(trajectory: Recording, policy: ExitPolicy, free: ExitPolicy) -> Tensor:
    """How ready each row is to exit at each step but the last, `(batch, steps − 1)`."""
    probe = _Probe(policy, free, [])
    replay(trajectory, probe)
    if not probe.seen:
        return torch.empty(len(trajectory), 0, device=trajectory.outputs.device)
    return torch.stack(probe.seen, dim=1)
