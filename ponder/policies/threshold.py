"""The hyper-parameter that moves the exits of a policy between early and late.

Almost every exit policy of the field compares one statistic with one number: CDF_n > q, entropy < threshold, agreements
≥ patience. Saying so lets a sweep read the exits under a thousand thresholds from one pass.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ponder._utils.validation import check_choice, check_real
from ponder.errors import ArgumentError

__all__ = ["Threshold"]

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "above": operator.gt,
    "at_least": operator.ge,
    "below": operator.lt,
    "at_most": operator.le,
}


@dataclass(frozen=True)
class Threshold:
    """The hyper-parameter that a row's statistic is compared with.

    Args:
        field: Name of the field of the policy.
        leaves: How a row's statistic stands to the threshold when the row leaves: ``"above"`` is statistic >
            threshold, ``"at_least"`` ≥, ``"below"`` <, ``"at_most"`` ≤.
        low: Least useful value.
        high: Greatest useful value: a number, or a function of the number of steps and of the size of the last
            dimension of the outputs.
        whole: Whether only whole numbers make sense.

    Raises:
        ArgumentError: An unknown `leaves`, or bounds that are not numbers (or, for `high`, a callable).

    Example:
        >>> policies.Quantile.tunable
        Threshold(field='q', leaves='above', low=0.0, high=1.0, whole=False)
    """

    field: str
    leaves: Literal["above", "at_least", "below", "at_most"]
    low: float = 0.0
    high: float | Callable[[int, int], float] = 1.0
    whole: bool = False

    def __post_init__(self) -> None:
        check_choice("leaves", self.leaves, _COMPARISONS)
        check_real("low", self.low, -math.inf)
        if not callable(self.high):
            check_real("high", self.high, -math.inf)
            if self.high < self.low:
                raise ArgumentError(
                    "high", expected=f"a number ≥ low, {self.low}", got=self.high, remedy="Exchange the two."
                )

    @property
    def higher_exits_later(self) -> bool:
        """Whether rows leave later under a higher threshold."""
        return self.leaves in ("above", "at_least")

    @property
    def inclusive(self) -> bool:
        """Whether a row leaves where its statistic equals the threshold."""
        return self.leaves in ("at_least", "at_most")

    def argument(self, value: float) -> dict[str, Any]:
        """The threshold as an argument of its policy."""
        return {self.field: int(value) if self.whole and value == int(value) else value}

    def crossed(self, statistic: Tensor, value: float) -> Tensor:
        """Which rows leave, `(batch,)` bool."""
        leaving: Tensor = _COMPARISONS[self.leaves](statistic, value)
        return leaving

    def values(self, num_steps: int, width: int, count: int = 201) -> list[float]:
        """Values from low to high, known before any data is seen, as a test with a certificate wants them.

        Whole numbers all; others `count` of them, denser at both ends (like the cosine), since confidences crowd there.

        Args:
            num_steps: N.
            width: Size of the last dimension of the outputs.
            count: How many values, where not only whole numbers make sense.
        """
        high = self.high(num_steps, width) if callable(self.high) else self.high
        if self.whole:
            return [float(value) for value in range(int(self.low), int(high) + 1)]
        shares = [(1.0 - math.cos(math.pi * i / (count - 1))) / 2.0 for i in range(count)]
        return [self.low + (high - self.low) * share for share in shares]
