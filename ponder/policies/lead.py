r"""Draws of a budget: stop a vote by its lead, and a mean by its standard error.

Members vote in a random order: trees of a forest, samples of a language model, passes with dropout.
After n of N votes the leader is ahead by the share m of the n votes. The votes that remain are a
draw without replacement from the same population, so the standard error of m shrinks as √((1 −
n/N) / n), the correction of Cochran (1977, Section 2.6) for a finite population, and

    z = m · √(n / (1 − n/N))

compares leads after different numbers of votes. A lead of more votes than remain, n · m > N − n, is
never overtaken, so the row exits whatever the threshold. A mean of n of N numbers has the standard
error s √((1 − n/N) / n) with the same correction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ponder._utils.arrays import at_least_float32, namespace
from ponder._utils.checks import check_real
from ponder.policies.base import Array, PolicyState, StepView, Threshold, ThresholdPolicy
from ponder.policies.certainty import OfClasses, class_logits, margin

__all__ = ["Lead", "StandardError"]

_ROUNDING = 1e-4
"""Votes by which a lead must pass the votes that remain: shares of float32 are rounded."""


@dataclass(frozen=True)
class Lead(OfClasses):
    r"""Stop a vote once the lead, in standard errors, is above a threshold.

    The outputs of step n are logarithms of the shares of the classes in the first n of N equal
    blocks of votes, as `ponder.calibration.Record.from_votes` makes them. Votes, and also class
    probabilities in their place, must come in an order that has nothing to do with the row. The
    statistic is z = m √(n / (1 − n/N)), with the difference m of the two highest shares; it is
    infinite once the lead is greater than the votes that remain, n m > N − n. Else it is below N,
    so that with a threshold of N only rows exit whose answer is certainly that of all votes.

    Args:
        threshold: The statistic above which a row exits, ≥ 0.

    Example:
        >>> import numpy as np
        >>> from ponder.calibration import Record
        >>> votes = np.array([[0, 0, 0, 1, 0], [0, 1, 1, 0, 1]])
        >>> record = Record.from_votes(votes)
        >>> record.exit_steps(policies.Lead(5))  # 3 of 5 votes agree
        array([3, 5])
        >>> record.exit_steps(policies.Lead(1.5))
        array([2, 5])
    """

    threshold: float
    tunable = Threshold("threshold", "above", high=lambda num_steps, width: float(num_steps))

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold)

    def statistic(self, step: StepView, state: PolicyState) -> tuple[Array, PolicyState]:
        lead = margin(class_logits(self, step))
        xp = namespace(lead)
        taken = at_least_float32(step.index)
        if lead.ndim == 2:  # every position is a vote of its own
            taken = taken[:, None]
        remaining = step.num_steps - taken
        scaled = lead * (taken / (1.0 - taken / step.num_steps)) ** 0.5
        is_settled = lead * taken > remaining + _ROUNDING
        value = xp.where(is_settled, math.inf, scaled)
        if value.ndim == 1:
            return value, state
        if step.mask is not None:
            value = xp.where(step.mask, value, math.inf)
        return xp.amin(value, 1), state


@dataclass(frozen=True)
class StandardError(ThresholdPolicy):
    """Stop a mean of numbers once its standard error is below a threshold.

    The features of step n are the standard error s / √n of the mean of the first n of N equal
    blocks, `(rows, 1)`, as `ponder.calibration.Record.from_values` makes them; the statistic has
    the correction √(1 − n/N) for a finite population. It is infinite while it is unknown, after the
    first number.

    Args:
        threshold: The standard error below which a row exits, ≥ 0, in the unit of the numbers.

    Example:
        >>> from ponder.calibration import Record
        >>> record = Record.from_values([[1.0, 1.1, 0.9, 1.0], [1.0, 9.0, 2.0, 4.0]])
        >>> record.exit_steps(policies.StandardError(0.1))
        array([2, 4])
    """

    threshold: float
    needs = frozenset({"features"})
    tunable = Threshold("threshold", "below")

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold)

    def statistic(self, step: StepView, state: PolicyState) -> tuple[Array, PolicyState]:
        of_mean = at_least_float32(step.features).reshape(len(step.index))
        remaining = 1.0 - at_least_float32(step.index) / step.num_steps
        return of_mean * remaining**0.5, state
