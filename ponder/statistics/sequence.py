"""Fixed-sequence testing: values are tested in an order that no data chose, until one fails.

With probability 1 − δ all values that passed have a risk of at most the level, so that any of them
may be taken (Angelopoulos et al. 2021):

    for each value, from the safest on:
        statistic = the p-value of "the mean loss is above the level"
        stop at the first whose statistic is above δ
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ponder._utils.arrays import Floats, Ints
from ponder.statistics.bounds import BOUNDS, check_losses, rows_needed
from ponder.statistics.certificate import Certificate, count

__all__ = ["CONFORMAL", "FixedSequence", "Tested", "first_failing"]

CONFORMAL = "conformal"
"""The bound of conformal risk control (Angelopoulos et al. 2022), whose statistic is a risk."""


def first_failing(statistics: Any, limit: Any) -> Ints:
    """Return the place of the first statistic that is above its limit; their number if none is.

    Args:
        statistics: Statistics of the values in their order, `(values, …)`.
        limit: The limit of each sequence, `(…)`.

    Example:
        >>> import numpy as np
        >>> from ponder.statistics.sequence import first_failing
        >>> int(first_failing([0.01, 0.04, 0.2, 0.03], 0.05)), int(first_failing([0.01], 0.05))
        (2, 1)
    """
    fails = ~(np.asarray(statistics) <= limit)
    places: Ints = np.argmax(np.concatenate([fails, np.ones_like(fails[:1])]), axis=0)
    return places


class Tested(NamedTuple):
    """A value that was tested, its mean loss, and its statistic."""

    value: float
    loss: float
    statistic: float


class FixedSequence:
    """The test of each value, one after the other.

    Args:
        bound: Name of the bound, or ``"conformal"``.
        level: Upper limit of the risk, in (0, 1).
        confidence: Probability of the promise, in (0, 1); not read by ``"conformal"``.
        rows: Number of the rows or queries that count.

    Attributes:
        path: The values that passed, and the first that failed, if any did.
        num_passed: How many passed.

    Example:
        >>> import numpy as np
        >>> from ponder.statistics.sequence import FixedSequence
        >>> sequence = FixedSequence("exact_binomial", level=0.1, confidence=0.95, rows=100)
        >>> losses = np.zeros((3, 100))
        >>> losses[2, :20] = 1.0
        >>> sequence.test([0.9, 0.8, 0.7], losses), sequence.num_passed
        (False, 2)
    """

    def __init__(self, bound: str, level: float, confidence: float, rows: int) -> None:
        self.path: list[Tested] = []
        self.num_passed = 0
        self._limit = level if bound == CONFORMAL else 1.0 - confidence
        self._bound = bound
        self._level = level
        self._confidence = None if bound == CONFORMAL else confidence
        self._rows = rows
        self._highest = np.full(rows, -1.0)

    def test(self, values: Sequence[float], losses: Floats) -> bool:
        """Test the next values, and return whether all of them passed.

        Args:
            values: The values, in their order.
            losses: Their losses, `(values, rows)`.
        """
        statistics = self._statistics(losses)
        passed = int(first_failing(statistics, self._limit))
        rows = zip(values, losses.mean(axis=1).tolist(), statistics.tolist(), strict=True)
        self.path += [Tested(*row) for row in rows][: passed + 1]
        self.num_passed += passed
        return passed == len(values)

    def certificate(self, place: int | None, **facts: Any) -> Certificate:
        """Return the certificate of a value that passed, or of none.

        Args:
            place: Its place in `path`; None if nothing passed.
            facts: Facts of the certificate that the test does not know: its rule, its change.
        """
        tested = Certificate(
            level=self._level,
            confidence=self._confidence,
            rows=self._rows,
            bound=self._bound,
            path=tuple(self.path),
            **facts,
        )
        if place is None:
            return replace(tested, why=f"{_why(tested)}. Every row runs to the last step")
        value, _, statistic = self.path[place]
        p_value = None if self._bound == CONFORMAL else statistic
        return replace(tested, threshold_value=value, p_value=p_value)

    def _statistics(self, losses: Floats) -> Floats:
        """Return the statistic of each value, `(values,)`."""
        if self._bound != CONFORMAL:
            check_losses(losses, self._bound)
            return BOUNDS[self._bound].p_values(losses.T, self._level)
        # The risk must be monotone, so a row keeps the highest loss of the values before.
        monotone = np.maximum.accumulate(np.concatenate([self._highest[None], losses]))[1:]
        self._highest = monotone[-1]
        # The fresh row may have a loss of 1.
        bounds: Floats = (monotone.sum(axis=1) + 1.0) / (self._rows + 1)
        return bounds


def _why(tested: Certificate) -> str:
    """Return why nothing passed: too few rows, or a first value whose loss is too high."""
    if tested.confidence is None:
        needed = math.ceil(min(1.0 / tested.level - 1.0 - 1e-9, sys.float_info.max))
    else:
        needed = rows_needed(tested.level, tested.confidence)
    if tested.rows < needed:
        rows = count(tested.rows, tested.unit)
        given = tested.given or tested.rows
        if tested.rows < given:
            rows = f"{tested.rows} of {given} rows that count"
        in_all = ""
        if 0 < tested.rows < given:
            in_all = f", some {math.ceil(needed * given / tested.rows)} rows in all"
        return (
            f"{rows} are too few for this level even without a single loss: at least {needed} are "
            f"needed{in_all}"
        )
    first, loss, _ = tested.path[0]
    return (
        f"already at {tested.threshold_name} = {first:.6g}, tried first, the loss observed is "
        f"{loss:.4f}. Values are tried from the latest exits on if the policy declares which these "
        "are (tunable), else in the order of the grid"
    )
