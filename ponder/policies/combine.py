"""Policies made of other policies: `a | b`, `a & b`, `p.after(k)`, `p.before(k)`, certificates.

Exits under a moved threshold form a lattice: either policy's exit is the maximum of their
readiness, and both policies' exit is the minimum. So a composite policy is swept in one pass, as a
simple one is.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, ClassVar, Self

from ponder._utils.arrays import namespace
from ponder._utils.checks import check_int, check_type
from ponder.errors import ArgumentError
from ponder.policies.base import (
    Array,
    ExitPolicy,
    ModelSpec,
    PolicyState,
    PolicyWrapper,
    StepView,
    scaled_step,
)
from ponder.statistics.certificate import Certificate

__all__ = ["All", "Any_", "Certified", "FromStep", "is_about", "promise_about"]


@dataclass(frozen=True)
class _Several(ExitPolicy):
    """Base of the policies of which any, or all, must exit."""

    policies: tuple[ExitPolicy, ...]
    of_masks: ClassVar[Callable[[Array, Array], Array]]
    """How two exit masks become one."""
    of_readiness: ClassVar[str]
    """The name of the function by which two readinesses become one."""

    def __post_init__(self) -> None:
        for policy in self.policies:
            check_type("policies", policy, ExitPolicy)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What any of the parts reads."""
        return frozenset[str]().union(*(policy.needs for policy in self.policies))

    def init(self, first: StepView) -> PolicyState:
        return tuple(policy.init(first) for policy in self.policies)

    def decide(self, step: StepView, state: PolicyState) -> tuple[Array | bool, PolicyState]:
        answers = [
            policy.decide(step, part) for policy, part in zip(self.policies, state, strict=True)
        ]
        return _merged(type(self).of_masks, answers)

    def readiness(
        self, step: StepView, state: PolicyState, free: ExitPolicy
    ) -> tuple[Array, PolicyState]:
        answers = [
            policy.readiness(step, part, free)
            for policy, part in zip(self.policies, state, strict=True)
        ]
        return _merged(getattr(namespace(step.index), self.of_readiness), answers)

    def check(self, spec: ModelSpec) -> None:
        for policy in self.policies:
            policy.check(spec)

    def parts(self) -> tuple[ExitPolicy, ...]:
        return self.policies

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        return replace(
            self, policies=tuple(p.rescaled(tuned_for, num_steps) for p in self.policies)
        )


def _merged(
    merge: Callable[[Array, Array], Array], answers: Sequence[tuple[Array, PolicyState]]
) -> tuple[Array, PolicyState]:
    """Return the answers of several policies as one, and their states."""
    merged = reduce(merge, (answer for answer, _ in answers))
    return merged, tuple(state for _, state in answers)


@dataclass(frozen=True)
class Any_(_Several):  # noqa: N801 (the name Any is Python's)
    """Exit once any of the policies does.

    Example:
        >>> scores = torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]])
        >>> record = Trajectory(scores, None, torch.arange(1))
        >>> policy = policies.Confidence(0.99) | policies.Patience(1)
        >>> policy
        Any_(policies=(Confidence(threshold=0.99), Patience(patience=1, tolerance=0.0)))
        >>> record.replay(policy).exit_step
        tensor([2])
    """

    of_masks = operator.or_
    of_readiness = "maximum"

    def words(self) -> str:
        return ", or ".join(policy.words() for policy in self.policies)


@dataclass(frozen=True)
class All(_Several):
    """Exit once all of the policies do, at the same step.

    Example:
        >>> scores = torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]])
        >>> record = Trajectory(scores, None, torch.arange(1))
        >>> policy = policies.Confidence(0.6) & policies.Patience(2)
        >>> record.replay(policy).exit_step
        tensor([3])
    """

    of_masks = operator.and_
    of_readiness = "minimum"

    def words(self) -> str:
        """Return the words of all parts; bounds on the step come last."""
        bounds = [part.words() for part in self.policies if isinstance(part, FromStep)]
        others = [part.words() for part in self.policies if not isinstance(part, FromStep)]
        if not others:
            return ", ".join(bounds)
        return ", ".join([" and ".join(others), *bounds])


@dataclass(frozen=True)
class FromStep(ExitPolicy):
    """Exit at `step` and at any later one: a bound for another policy.

    `p.after(step)` is ``p & FromStep(step)``, no exit before it; `p.before(step)` is ``p |
    FromStep(step)``, every row out by then. The state of the other policy runs from the first step
    all the same.

    Args:
        step: The first step at which rows may exit, or have to.

    Example:
        >>> scores = torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]])
        >>> record = Trajectory(scores, None, torch.arange(1))
        >>> record.replay(policies.Confidence(0.6).after(2)).exit_step
        tensor([2])
        >>> record.replay(policies.Confidence(0.999).before(2)).exit_step
        tensor([2])
    """

    step: int

    def __post_init__(self) -> None:
        check_int("step", self.step, remedy="Steps count from 1.")

    def decide(self, step: StepView, state: PolicyState) -> tuple[Array | bool, PolicyState]:
        return step.index >= self.step, state

    def words(self) -> str:
        return f"from step {self.step} on"

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        return replace(self, step=scaled_step(self.step, tuned_for, num_steps))


@dataclass(frozen=True)
class Certified(PolicyWrapper):
    """The policy inside, with the certificate of its promise; made by `ponder.control_risk`.

    Args:
        policy: The policy.
        certificate: The facts of the promise.

    Example:
        >>> policy = ponder.control_risk(trajectory, policies.Confidence, level=0.05).policy
        >>> made = policy.certificate
        >>> made.risk, made.level, made.confidence, made.threshold_name, made.rows
        ('disagreement', 0.05, 0.95, 'threshold', 300)
    """

    certificate: Certificate

    def __post_init__(self) -> None:
        if isinstance(self.certificate, Mapping):  # as `from_dict` reads it
            object.__setattr__(self, "certificate", Certificate(**self.certificate))

    def with_facts(self, **facts: Any) -> Self:
        """Return the same policy, with other facts in its certificate: another rule, say."""
        return replace(self, certificate=replace(self.certificate, **facts))

    def words(self) -> str:
        return self.policy.words()

    def rule(self, unit: str = "text") -> str:
        return self.policy.rule(unit)

    def rescaled(self, tuned_for: int, num_steps: int) -> ExitPolicy:  # type: ignore[override]
        """Return the policy for another number of steps, without the promise.

        Itself for the same number.
        """
        if tuned_for == num_steps:
            return self
        return self.policy.rescaled(tuned_for, num_steps)

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        if self.certificate.num_steps not in (None, spec.num_steps):
            raise ArgumentError(
                "policy",
                expected=f"one that is certified for {spec.num_steps} steps",
                got=f"a certificate for {self.certificate.num_steps}",
                remedy="Run the policy inside, policy.policy, without a promise, or certify it on "
                "such a run.",
            )


def promise_about(
    weights: Callable[[], str | None],
    policy: ExitPolicy,
    changed: Callable[[], Sequence[str]] = tuple,
) -> ExitPolicy:
    """Return a policy, without its promise if that was made about something else.

    Args:
        weights: Returns the digest of the weights that answer, which are compared with those of the
            certificate.
        policy: The policy.
        changed: Returns the parts of the folder that are not those that were saved
            (`ponder._utils.seals`).
    """
    if not isinstance(policy, Certified):
        return policy
    # Weights are read only for a certificate that knows its own.
    certified = policy.certificate.weights
    now = None if certified is None else weights()
    if is_about(certified, now, changed()):
        return policy
    return policy.policy


def is_about(certified: str | None, weights: str | None, changed: Sequence[str]) -> bool:
    """Return whether a certificate is about the model that answers; warn if it is not.

    Args:
        certified: The digest of the weights in the certificate; None if it has none.
        weights: The digest of the weights that answer.
        changed: Names of other parts that have changed.
    """
    parts = [*changed]
    if certified not in (None, weights):
        parts.insert(0, "weights")
    if parts:
        what = ", ".join(parts)
        warnings.warn(
            f"The {what} changed after they were certified; the promise is dropped.", stacklevel=4
        )
    return not parts
