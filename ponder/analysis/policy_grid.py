"""A family of policies: one policy for every value of a knob."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ponder._utils.trees import Tree
from ponder.engine.replay import check_replay, replay
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.recording import Recording
from ponder.policies.base import ExitPolicy, PolicyBatch, StepView, ThresholdPolicy
from ponder.policies.threshold import Threshold

__all__ = ["Family", "FamilyLike", "as_family"]

FamilyLike = type[ExitPolicy] | ExitPolicy | Callable[[float], ExitPolicy]


@dataclass(frozen=True, eq=False)
class Family:
    """Policies ordered by a knob.

    Args:
        knob: Name of what is turned.
        values: Its values, strictly rising or strictly falling, `(knobs,)`.
        policies: The policy of each value.
        declared: The knob, where a class or a policy was given.
    """

    knob: str
    values: tuple[float, ...]
    policies: tuple[ExitPolicy, ...]
    declared: Threshold | None = None

    @property
    def higher_exits_later(self) -> bool | None:
        """Whether a greater value lets rows leave later; None where that is not known."""
        free = self._free()
        knob = self.declared if free is None else free.tunable
        return None if knob is None else knob.higher_exits_later

    def exit_steps(self, trajectory: Recording) -> Tensor:
        """The step at which each row leaves under each policy, `(knobs, batch)` long."""
        places = self.places(trajectory)
        if places is None:
            return torch.stack([replay(trajectory, policy).exit_step for policy in self.policies])
        order, rank = places
        knobs = torch.arange(len(self.values), device=rank.device).expand(rank.shape[0], -1).contiguous()
        return (torch.searchsorted(rank, knobs, right=True) + 1).T[order.argsort()]

    def places(self, trajectory: Recording) -> tuple[Tensor, Tensor] | None:
        """Where each row leaves, from one pass, without an exit step for every knob.

        Returns:
            None where one pass does not tell. Else an order of the values from early to late, `(knobs,)`, and for
            each row and each step but the last the number of policies, in this order, that let it go by then,
            `(batch, steps − 1)` long.
        """
        free = self._free()
        if free is None or not len(trajectory):
            return None
        knob = free.tunable
        readiness = _readiness(trajectory, self.policies[0], free).cummax(1).values
        values = torch.tensor(self.values, dtype=torch.float64, device=readiness.device)
        order = (values if knob.higher_exits_later else -values).argsort()
        turned = values[order].to(readiness.dtype)
        turned = turned if knob.higher_exits_later else -turned
        return order, torch.searchsorted(turned.contiguous(), readiness.contiguous(), right=knob.inclusive)

    def _free(self) -> ThresholdPolicy | None:
        """The one policy inside the first that differs between all of them in its knob and in nothing else."""
        thresholds = (leaf for leaf in _leaves(self.policies[0]) if isinstance(leaf, ThresholdPolicy))
        return next((leaf for leaf in thresholds if self._turns(leaf)), None)

    def _turns(self, leaf: ThresholdPolicy) -> bool:
        """Whether turning the knob of `leaf`, a part of the first policy, gives all of them."""
        pairs = zip(self.policies, self.values, strict=True)
        try:
            return all(
                policy == _exchanged(self.policies[0], leaf, leaf.with_threshold(value)) for policy, value in pairs
            )
        except ArgumentError:  # the values mean nothing to this leaf
            return False


def as_family(like: FamilyLike, grid: Iterable[float] | None, trajectory: Recording) -> Family:
    """What a user passes, as a family that has been checked against a trajectory.

    Args:
        like: A class of policies with a knob, a policy whose knob is to be turned, or a callable value → policy.
        grid: Values of the knob, strictly rising or falling; those of the class's knob where None.
        trajectory: What the family will be tried on.
    """
    build, declared, default = _builder(like, trajectory)
    values = default if grid is None else _ordered(grid)
    if not values:
        raise ArgumentError(
            "grid",
            expected="values of the knob, since a callable does not tell them",
            got="None",
            remedy="Pass grid=[0.1, 0.2, …].",
        )
    made = [_policy_of(build, value) for value in values]
    family = Family("knob" if declared is None else declared.field, tuple(values), tuple(made), declared)
    for policy in made:
        check_replay(trajectory, policy)
    return family


def _builder(like: FamilyLike, trajectory: Recording) -> tuple[Callable[[float], Any], Threshold | None, list[float]]:
    if isinstance(like, ExitPolicy) or (isinstance(like, type) and issubclass(like, ExitPolicy)):
        knob = like.tunable
        if knob is None:
            raise ArgumentError(
                "policies",
                expected="a policy with a knob, or a callable that builds one policy for each value",
                got=getattr(like, "__name__", repr(like)),
                remedy="Say what is turned: lambda q: policies.Quantile(q) | policies.Patience(3), with grid=[…].",
            )

        def build(value: float) -> ExitPolicy:
            if isinstance(like, ExitPolicy):
                return like.with_threshold(value)
            try:
                return like(**knob.argument(value))
            except TypeError as error:
                raise ArgumentTypeError(
                    "policies",
                    expected=f"a policy that {knob.field} alone makes",
                    got=like.__name__,
                    remedy=f"Pass a policy instead of its class, and its {knob.field} is turned ({error}).",
                ) from error

        values = knob.values(trajectory.num_steps, trajectory.outputs.shape[-1])
        accepted = [value for value in values if _accepts(build, value, trajectory)]
        if not accepted:
            check_replay(trajectory, build(values[len(values) // 2]))  # raises what is wrong with all of them
        return build, knob, accepted
    if not callable(like):
        raise ArgumentTypeError(
            "policies",
            expected="a class of policies, a policy, or a callable value -> policy",
            got=type(like).__name__,
            remedy="Pass policies.Quantile, say.",
        )
    return like, None, []


def _ordered(grid: Iterable[float]) -> list[float]:
    values = [float(value) for value in grid]
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


def _leaves(policy: ExitPolicy) -> Iterator[ExitPolicy]:
    if not policy.parts():
        yield policy
    for part in policy.parts():
        yield from _leaves(part)


def _exchanged(policy: ExitPolicy, old: ExitPolicy, new: ExitPolicy) -> ExitPolicy:
    """`policy` with the part `old` (this object) exchanged for `new`."""
    if policy is old:
        return new
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(policy):  # type: ignore[arg-type]
        value = getattr(policy, field.name)
        if isinstance(value, ExitPolicy):
            changes[field.name] = _exchanged(value, old, new)
        elif isinstance(value, tuple) and value and all(isinstance(part, ExitPolicy) for part in value):
            changes[field.name] = tuple(_exchanged(part, old, new) for part in value)
    return dataclasses.replace(policy, **changes) if changes else policy  # type: ignore[type-var]


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
        self.seen.append(readiness if readiness.is_floating_point() else readiness.float())
        return False, state


def _readiness(trajectory: Recording, policy: ExitPolicy, free: ExitPolicy) -> Tensor:
    """Readiness, `(batch, steps − 1)`."""
    probe = _Probe(policy, free, [])
    replay(trajectory, probe)
    if not probe.seen:
        return torch.empty(len(trajectory), 0, device=trajectory.outputs.device)
    return torch.stack(probe.seen, dim=1)
