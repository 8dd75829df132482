"""What an exit policy is: hyper-parameters, an `init` that gives state, and one pure method that decides."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from ponder._utils.registry import Plugin, Registry
from ponder._utils.trees import Tree
from ponder.errors import ArgumentError, PonderError

if TYPE_CHECKING:
    from ponder.policies.combinators import After, All, Any_, Before
    from ponder.policies.threshold import Knob

__all__ = ["Batch", "ExitPolicy", "Setting", "StepView", "registry"]

READINGS = frozenset({"hazard", "output", "features"})
_PROVIDED_BY = {
    "hazard": "hazard",
    "cdf": "hazard",
    "survival": "hazard",
    "output": "output",
    "features": "features",
}

registry: Registry[ExitPolicy] = Registry("policy", "ponder.policies")


@dataclass(frozen=True)
class Batch:
    """The rows that a policy is about to decide on.

    Args:
        row_ids: Who each row is, `(batch,)` long: its position, or the caller's `row_ids`.
        num_steps: N, the number of steps at full depth.
        task: Name of the task, or None where the model names none.
    """

    row_ids: Tensor
    num_steps: int
    task: str | None = None

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.row_ids.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.row_ids.device


@dataclass(frozen=True)
class Setting:
    """What is known of a model before a batch comes, for `ExitPolicy.check`.

    Args:
        num_steps: N.
        task: Name of the task, or None.
        has_hazard: Whether there is a Lambda head.
        has_features: Whether features can be read (a trajectory may not have kept them).
    """

    num_steps: int
    task: str | None
    has_hazard: bool
    has_features: bool = True


@dataclass(frozen=True)
class StepView:
    """What a policy sees after a step, for the rows that are still running.

    Only what the policy's `needs` name can be read; anything else raises `PonderError`.

    Args:
        index: The step just finished by each row, `(batch,)` long, 1-based. Rows may be at different steps.
        num_steps: N.
        readings: The values behind the properties.
        task: Name of the task, or None where the model names none.
    """

    index: Tensor
    num_steps: int
    readings: Mapping[str, Tensor]
    task: str | None = None

    @property
    def hazard(self) -> Tensor:
        """λ_n, `(batch,)`."""
        return self._read("hazard")

    @property
    def cdf(self) -> Tensor:
        """P(stop at n or before), `(batch,)`."""
        return self._read("cdf")

    @property
    def survival(self) -> Tensor:
        """P(not stopped before n), `(batch,)`."""
        return self._read("survival")

    @property
    def output(self) -> Tensor:
        """The head's outputs at this step, `(batch, …)`."""
        return self._read("output")

    @property
    def features(self) -> Tensor:
        """The readout's features at this step, `(batch, …)`."""
        return self._read("features")

    def _read(self, name: str) -> Tensor:
        if name not in self.readings:
            raise PonderError(
                f"the policy reads step.{name}, which it does not declare. "
                f"Set needs = frozenset({{{_PROVIDED_BY[name]!r}}}) on the policy's class."
            )
        return self.readings[name]


class ExitPolicy(Plugin, ABC):
    """Base of the exit policies; leaves are frozen dataclasses of hyper-parameters.

    A leaf sets `needs` and defines `decide`, and `init` where it carries state from step to step. The exit at
    the last step belongs to the loop: a policy is not asked there.
    """

    registry = registry
    needs: frozenset[str] = frozenset()
    """Which of "hazard", "output", "features" the policy reads; only these are computed."""
    knob: ClassVar[Knob | None] = None
    """The field that moves the exits between early and late, where there is one."""

    def init(self, batch: Batch) -> Tree:
        """State before the first step: (nested) tensors with the batch first, or None.

        A None leaf stands for "no value yet": where rows at different depths share a batch, it is filled with zeros
        beside the values of others, so `decide` tells first steps by ``step.index``.
        """
        return None

    @abstractmethod
    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        """Which rows exit now, and the new state. Pure: nothing that was passed in may be changed.

        Returns:
            The exit mask, `(batch,)` bool (or one bool for all rows, which costs no device synchronisation), and
            the state for the next step, for all rows.
        """

    def check(self, setting: Setting) -> None:
        """Raise where the policy cannot serve a model; called once when it meets one, before any batch.

        A leaf that overrides this calls `super().check(setting)`.
        """
        unknown = self.needs - READINGS
        if unknown:
            raise ArgumentError(
                f"{type(self).__name__}.needs",
                expected=f"a subset of {sorted(READINGS)}",
                got=sorted(unknown),
                remedy="cdf and survival come with 'hazard'.",
            )
        if "hazard" in self.needs and not setting.has_hazard:
            raise ArgumentError(
                "policy",
                expected="a policy that needs no hazard, since there is no Lambda head",
                got=repr(self),
                remedy="Pass lambda_head=ponder.LambdaHead(width) to the model, or use a policy on outputs.",
            )
        if "features" in self.needs and not setting.has_features:
            raise ArgumentError(
                "policy",
                expected="a policy that reads no features, since the trajectory kept none",
                got=repr(self),
                remedy="Record them with model.unroll(…, keep_features=True).",
            )

    def parts(self) -> tuple[ExitPolicy, ...]:
        """The policies that this one is made of; none by default."""
        return ()

    def readiness(self, step: StepView, state: Tree, free: ExitPolicy) -> tuple[Tensor, Tree]:
        """How near each row is to its exit, as the knob of `free`, one of the policies inside, is turned.

        A row leaves where this is above (or at) the knob; for a knob that is turned down to leave later, above its
        negative. By default the policy has nothing to do with `free`: +∞ where it lets a row go, −∞ elsewhere. A
        policy that overrides `parts` overrides this too.

        Returns:
            Readiness `(batch,)`, and the new state.
        """
        mask, state = self.decide(step, state)
        leaving = torch.as_tensor(mask, device=step.index.device).expand(step.index.shape)
        return torch.where(leaving, torch.inf, -torch.inf), state

    def turned(self, value: float) -> Self:
        """This policy with its knob at `value`."""
        assert self.knob is not None
        return dataclasses.replace(self, **self.knob.argument(value))  # type: ignore[type-var]

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """The policy for `num_steps` that means what this one means for `tuned_for`; itself by default."""
        return self

    def __or__(self, other: ExitPolicy) -> Any_:
        """Exit where either does."""
        from ponder.policies.combinators import Any_

        return Any_((self, other))

    def __and__(self, other: ExitPolicy) -> All:
        """Exit where both do, at the same step."""
        from ponder.policies.combinators import All

        return All((self, other))

    def after(self, step: int) -> After:
        """This policy, with no exit before `step`."""
        from ponder.policies.combinators import After

        return After(self, step)

    def before(self, step: int) -> Before:
        """This policy, with every row out at `step` at the latest."""
        from ponder.policies.combinators import Before

        return Before(self, step)


def check_unit(argument: str, value: Any) -> None:
    """Refuse numbers outside [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise ArgumentError(
            argument, expected="a number in [0, 1]", got=repr(value), remedy=f"Pass {argument}=0.5, say."
        )


def check_not_negative(argument: str, value: Any) -> None:
    """Refuse what is not a finite number ≥ 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < float("inf"):
        raise ArgumentError(
            argument, expected="a finite number ≥ 0", got=repr(value), remedy=f"Pass {argument}=0.1, say."
        )


def check_step(argument: str, value: Any, num_steps: int | None = None) -> None:
    """Refuse what is not a step: a whole number from 1, up to `num_steps` where it is known."""
    top = float("inf") if num_steps is None else num_steps
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= top:
        expected = "a step, a whole number ≥ 1" if num_steps is None else f"a step from 1 to {num_steps}"
        raise ArgumentError(argument, expected=expected, got=repr(value), remedy="Steps count from 1.")
