"""Policies that compare one statistic of a row with one hyper-parameter, the knob.

Almost every exit policy of the field is of this kind: CDF_n > q, entropy < threshold, agreements ≥ patience. Saying so,
with a `statistic` and a `Knob` instead of a `decide`, lets a sweep read the exits of a thousand knobs from one pass.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from ponder._utils.trees import Tree
from ponder.policies.base import ExitPolicy, StepView

__all__ = ["Knob", "ThresholdPolicy"]


@dataclass(frozen=True)
class Knob:
    """The hyper-parameter that moves the exits of a policy between early and late.

    Args:
        field: Name of the field.
        leaves: How a row's statistic stands to the knob when the row leaves: ``"above"`` is statistic > knob,
            ``"at_least"`` ≥, ``"below"`` <, ``"at_most"`` ≤.
        low: Least useful value.
        high: Greatest useful value, from the number of steps and the size of the last dimension of the outputs.
        whole: Whether only whole numbers make sense.
    """

    field: str
    leaves: Literal["above", "at_least", "below", "at_most"]
    low: float = 0.0
    high: Callable[[int, int], float] = lambda num_steps, width: 1.0
    whole: bool = False

    @property
    def raised_is_later(self) -> bool:
        """Whether a greater knob lets rows leave later."""
        return self.leaves in ("above", "at_least")

    @property
    def inclusive(self) -> bool:
        """Whether a row leaves where its statistic equals the knob."""
        return self.leaves in ("at_least", "at_most")

    def argument(self, value: float) -> dict[str, Any]:
        """The knob as an argument of its policy."""
        return {self.field: int(value) if self.whole and value == int(value) else value}

    def crossed(self, statistic: Tensor, value: float) -> Tensor:
        """Which rows leave, `(batch,)` bool."""
        if self.raised_is_later:
            return statistic >= value if self.inclusive else statistic > value
        return statistic <= value if self.inclusive else statistic < value

    def values(self, num_steps: int, width: int, count: int = 201) -> list[float]:
        """Values from low to high, known before any data is seen, as a test with a certificate wants them.

        Whole numbers all; others `count` of them, denser at both ends (like the cosine), since confidences crowd there.
        """
        high = self.high(num_steps, width)
        if self.whole:
            return [float(value) for value in range(int(self.low), int(high) + 1)]
        shares = [(1.0 - math.cos(math.pi * i / (count - 1))) / 2.0 for i in range(count)]
        return [self.low + (high - self.low) * share for share in shares]


class ThresholdPolicy(ExitPolicy):
    """Base of the policies with one statistic and one knob; a leaf defines `statistic` and names its `knob`.

    The statistic and the state must not depend on the knob.
    """

    knob: ClassVar[Knob]

    @abstractmethod
    def statistic(self, step: StepView, state: Tree) -> tuple[Tensor, Tree]:
        """What is compared with the knob, `(batch,)`, and the new state. Pure, as `decide`."""

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        value, state = self.statistic(step, state)
        return self.knob.crossed(value, getattr(self, self.knob.field)), state

    def readiness(self, step: StepView, state: Tree, free: ExitPolicy) -> tuple[Tensor, Tree]:
        if self is not free:
            return super().readiness(step, state, free)
        value, state = self.statistic(step, state)
        return (value if self.knob.raised_is_later else -value), state
