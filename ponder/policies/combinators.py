"""Policies made of policies: `a | b`, `a & b`, `p.after(k)`, `p.before(k)`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from operator import and_, or_
from typing import Self

import torch
from torch import Tensor

from ponder._utils.trees import Tree
from ponder.errors import ArgumentError
from ponder.policies.around import Around, check_policy
from ponder.policies.base import Batch, ExitPolicy, Setting, StepView, check_step, registry

__all__ = ["After", "All", "Any_", "Before"]


@dataclass(frozen=True)
class _Several(ExitPolicy):
    policies: tuple[ExitPolicy, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "policies", tuple(self.policies))
        if not self.policies:
            raise ArgumentError(
                "policies", expected="at least one policy", got="none", remedy="Use policies.LastStep() for no exit."
            )
        for policy in self.policies:
            check_policy(policy)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What any of the parts reads."""
        return frozenset[str]().union(*(policy.needs for policy in self.policies))

    def init(self, batch: Batch) -> Tree:
        return tuple(policy.init(batch) for policy in self.policies)

    def check(self, setting: Setting) -> None:
        for policy in self.policies:
            policy.check(setting)

    def parts(self) -> tuple[ExitPolicy, ...]:
        return self.policies

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        return replace(self, policies=tuple(p.rescaled(tuned_for, num_steps) for p in self.policies))

    def _ask_all(self, step: StepView, state: Tree) -> tuple[list[Tensor | bool], Tree]:
        answers = [policy.decide(step, part) for policy, part in zip(self.policies, state, strict=True)]
        return [mask for mask, _ in answers], tuple(part for _, part in answers)

    def _readiness_of_all(self, step: StepView, state: Tree, free: ExitPolicy) -> tuple[list[Tensor], Tree]:
        answers = [policy.readiness(step, part, free) for policy, part in zip(self.policies, state, strict=True)]
        return [readiness for readiness, _ in answers], tuple(part for _, part in answers)


@registry.register("any")
@dataclass(frozen=True)
class Any_(_Several):  # noqa: N801 (the name Any is Python's)
    """Exit where any of the policies does."""

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        masks, state = self._ask_all(step, state)
        return reduce(or_, masks), state

    def readiness(self, step: StepView, state: Tree, free: ExitPolicy) -> tuple[Tensor, Tree]:
        each, state = self._readiness_of_all(step, state, free)
        return reduce(torch.maximum, each), state


@registry.register("all")
@dataclass(frozen=True)
class All(_Several):
    """Exit where all of the policies do, at the same step."""

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        masks, state = self._ask_all(step, state)
        return reduce(and_, masks), state

    def readiness(self, step: StepView, state: Tree, free: ExitPolicy) -> tuple[Tensor, Tree]:
        each, state = self._readiness_of_all(step, state, free)
        return reduce(torch.minimum, each), state


@dataclass(frozen=True)
class _Bounded(Around):
    step: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_step("step", self.step)

    def check(self, setting: Setting) -> None:
        check_step("step", self.step, setting.num_steps)
        super().check(setting)

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        return replace(super().rescaled(tuned_for, num_steps), step=max(1, round(self.step * num_steps / tuned_for)))


@registry.register("after")
@dataclass(frozen=True)
class After(_Bounded):
    """The policy inside, with no exit before `step`; its state runs from the first step all the same."""

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        mask, state = super().decide(step, state)
        return (step.index >= self.step) & mask, state

    def readiness(self, step: StepView, state: Tree, free: ExitPolicy) -> tuple[Tensor, Tree]:
        inside, state = super().readiness(step, state, free)
        return inside.masked_fill(step.index < self.step, -torch.inf), state


@registry.register("before")
@dataclass(frozen=True)
class Before(_Bounded):
    """The policy inside, with every row out at `step` at the latest."""

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        mask, state = super().decide(step, state)
        return (step.index >= self.step) | mask, state

    def readiness(self, step: StepView, state: Tree, free: ExitPolicy) -> tuple[Tensor, Tree]:
        inside, state = super().readiness(step, state, free)
        return inside.masked_fill(step.index >= self.step, torch.inf), state
