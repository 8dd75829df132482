"""A policy around another one: what all of them hand on to the policy inside."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from ponder._utils.trees import Tree
from ponder.errors import ArgumentTypeError
from ponder.policies.base import Batch, ExitPolicy, Setting, StepView

__all__ = ["Around", "check_policy"]


@dataclass(frozen=True)
class Around(ExitPolicy):
    """Base of the policies around one other; by itself it decides as the policy inside does.

    A leaf changes what is seen (`seen`), or what comes out (`decide` and `readiness`, both alike).

    Args:
        policy: The policy inside.
    """

    policy: ExitPolicy

    def __post_init__(self) -> None:
        check_policy(self.policy)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What the policy inside reads."""
        return self.policy.needs

    def seen(self, step: StepView) -> StepView:
        """What the policy inside sees of a step."""
        return step

    def init(self, batch: Batch) -> Tree:
        return self.policy.init(batch)

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        return self.policy.decide(self.seen(step), state)

    def check(self, setting: Setting) -> None:
        self.policy.check(setting)

    def parts(self) -> tuple[ExitPolicy, ...]:
        return (self.policy,)

    def readiness(self, step: StepView, state: Tree, free: ExitPolicy) -> tuple[Tensor, Tree]:
        return self.policy.readiness(self.seen(step), state, free)

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        return replace(self, policy=self.policy.rescaled(tuned_for, num_steps))


def check_policy(policy: object) -> None:
    """Refuse what is not a policy."""
    if not isinstance(policy, ExitPolicy):
        raise ArgumentTypeError(
            "policy",
            expected="an ExitPolicy",
            got=type(policy).__name__,
            remedy="Combine policies with policies.",
        )
