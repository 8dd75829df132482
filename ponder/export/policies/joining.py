"""Policies made of others: `a | b`, `a & b`, `p.after(k)`, `p.before(k)`, and the base of those around another one."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import reduce
from typing import Any

from ponder._utils.validation import check_int
from ponder.export.policies.base import Array, ModelSpec, NumpyPolicy, StepView, ask, refusal, registry

__all__ = ["After", "All", "Any_", "Around", "Before"]


@dataclass(frozen=True)
class _Several(NumpyPolicy):
    policies: tuple[NumpyPolicy, ...]

    def __post_init__(self) -> None:
        listed: Any = self.policies
        if not isinstance(listed, tuple) or not listed or not all(isinstance(each, NumpyPolicy) for each in listed):
            raise refusal("several of which there is none" if listed == () else f"policies={listed!r}")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset[str]().union(*(policy.needs for policy in self.policies))

    @staticmethod
    @abstractmethod
    def merge(one: Any, other: Any) -> Any:
        """What two masks come to."""

    def check(self, model: ModelSpec) -> None:
        for policy in self.policies:
            policy.check(model)

    def init(self, row_ids: Array) -> Any:
        return tuple(policy.init(row_ids) for policy in self.policies)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        answers = [ask(policy, step, part) for policy, part in zip(self.policies, state, strict=True)]
        return reduce(self.merge, [mask for mask, _ in answers]), tuple(after for _, after in answers)


@registry.register("any")
@dataclass(frozen=True)
class Any_(_Several):  # noqa: N801 (as its twin)
    """Twin of `ponder.policies.Any_`, `a | b`."""

    @staticmethod
    def merge(one: Any, other: Any) -> Any:
        return one | other


@registry.register("all")
@dataclass(frozen=True)
class All(_Several):
    """Twin of `ponder.policies.All`, `a & b`."""

    @staticmethod
    def merge(one: Any, other: Any) -> Any:
        return one & other


@dataclass(frozen=True)
class Around(NumpyPolicy):
    """Base of those that are around another policy; see `ponder.policies.PolicyWrapper`."""

    policy: NumpyPolicy

    def __post_init__(self) -> None:
        given: Any = self.policy
        if not isinstance(given, NumpyPolicy):
            raise refusal(f"policy={given!r}")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What the policy inside reads."""
        return self.policy.needs

    def check(self, model: ModelSpec) -> None:
        self.policy.check(model)

    def init(self, row_ids: Array) -> Any:
        return self.policy.init(row_ids)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        return ask(self.policy, step, state)


@dataclass(frozen=True)
class _Bounded(Around):
    step: int

    def check(self, model: ModelSpec) -> None:
        check_int("step", self.step, 1, model.num_steps, remedy="Steps count from 1.")
        super().check(model)


@registry.register("after")
@dataclass(frozen=True)
class After(_Bounded):
    """Twin of `ponder.policies.After`, `p.after(k)`."""

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        mask, state = ask(self.policy, step, state)
        return mask & (step.index >= self.step), state


@registry.register("before")
@dataclass(frozen=True)
class Before(_Bounded):
    """Twin of `ponder.policies.Before`, `p.before(k)`."""

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        mask, state = ask(self.policy, step, state)
        return mask | (step.index >= self.step), state
