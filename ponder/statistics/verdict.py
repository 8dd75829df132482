"""The verdict on a promise, from fresh rows: kept, not refuted, or broken.

A promise is *kept* if the upper confidence limit of the observed loss is within the level. It is
*broken* if a loss as high as the observed one has a probability of at most 1 − confidence while the
promise holds. If neither is the case, it is *not refuted*: there are too few rows for either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ponder._utils.arrays import Floats
from ponder._utils.rounding import rounded_down
from ponder.statistics.bounds import BOUNDS, binomial_cdf, rows_needed, upper_bound
from ponder.statistics.certificate import count, percent

__all__ = ["Verdict", "judge", "judge_losses", "rows_that_would_do"]

_MOST_ROWS = 1_000_000  # the largest number of rows that is proposed
_CODES = {"kept": 0, "broken": 1, "not refuted": 3}


@dataclass(frozen=True)
class Verdict:
    """A promise, judged on fresh rows.

    Args:
        name: ``"kept"``, ``"not refuted"`` or ``"broken"``.
        sentence: The verdict in words, with the numbers.
        observed: The mean loss of the rows: the share of answers that differ.
        rows: Number of rows.
        upper: Upper confidence limit of the loss; NaN if only the level was tested.
        enough: Number of rows that would show the promise kept, if the share of losses stays as it
            is; None if no number would.
    """

    name: Literal["kept", "not refuted", "broken"]
    sentence: str
    observed: float
    rows: int
    upper: float
    enough: int | None = None

    @property
    def code(self) -> int:
        """The exit code of `ponder check`: 0 kept, 1 broken, 3 not refuted."""
        return _CODES[self.name]


def judge(
    differ: int, rows: int, level: float, confidence: float, unit: str = "fresh text"
) -> Verdict:
    """Judge the promise that at most `level` of the answers differ, by the exact binomial test.

    Args:
        differ: Number of rows whose answer differs.
        rows: Number of rows.
        level: The level that was promised, in (0, 1).
        confidence: Probability with which a verdict is right, in (0, 1).
        unit: Noun of a row.

    Example:
        >>> [judge(differ, 500, 0.01, 0.95).name for differ in (0, 1, 5, 12)]
        ['kept', 'kept', 'not refuted', 'broken']
    """
    upper = upper_bound(differ, rows, confidence)
    observed = differ / rows
    certainty = f"{rounded_down(100 * confidence)}% confidence"
    seen = f"{differ} of {count(rows, unit)} answered otherwise ({100 * observed:.2f}%)"
    limits = (
        f"{seen}, with {certainty} at most {percent(upper)}; promised: at most {percent(level)}."
    )
    if upper <= level:
        return Verdict("kept", f"The promise is kept: {limits}", observed, rows, upper)
    chance = 1.0
    if differ:
        chance = 1.0 - float(binomial_cdf(rows, level)[differ - 1])
    if chance <= 1.0 - confidence:
        sentence = (
            f"The promise is broken, with {certainty}: {seen}; promised: at most {percent(level)}."
        )
        return Verdict("broken", sentence, observed, rows, upper)
    enough = rows_that_would_do(observed, level, confidence)
    sentence = f"The promise is not refuted: {limits} {_advice_on_rows(enough, unit)}"
    return Verdict("not refuted", sentence, observed, rows, upper, enough)


def judge_losses(
    losses: Floats, level: float, confidence: float, unit: str = "fresh query"
) -> Verdict:
    """Judge the promise that the mean of losses in [0, 1] is at most `level`.

    Losses that are 0 or 1 are judged by `judge`, others by the bound of betting (Waudby-Smith &
    Ramdas 2020), from both sides.
    """
    rows = len(losses)
    if np.isin(losses, (0.0, 1.0)).all():
        return judge(int(losses.sum()), rows, level, confidence, unit)
    betting = BOUNDS["betting"].p_values
    p_above = float(betting(losses[:, None], level)[0])  # of a mean above the level
    p_below = float(betting(1.0 - losses[:, None], 1.0 - level)[0])
    observed = float(losses.mean())
    certainty = f"{rounded_down(100 * confidence)}% confidence"
    seen = (
        f"a mean loss of {observed:.4f} on {count(rows, unit)}; promised: at most {percent(level)}"
    )
    if p_above <= 1.0 - confidence:
        sentence = f"The promise is kept, with {certainty}: {seen}."
        return Verdict("kept", sentence, observed, rows, math.nan)
    if p_below <= 1.0 - confidence:
        sentence = f"The promise is broken, with {certainty}: {seen}."
        return Verdict("broken", sentence, observed, rows, math.nan)
    sentence = f"The promise is not refuted: {seen}. So few rows say no more."
    return Verdict("not refuted", sentence, observed, rows, math.nan)


def rows_that_would_do(share: float, level: float, confidence: float) -> int | None:
    """Return the number of rows that would show a promise kept; None if it is above a million.

    Args:
        share: The share of rows whose answer differs.
        level: The level that was promised, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).

    Example:
        >>> rows_that_would_do(0.0, 0.02, 0.95), rows_that_would_do(0.02, 0.02, 0.95)
        (149, None)
    """
    if share >= level:
        return None
    high = rows_needed(level, confidence)
    low = high - 1
    while not _would_do(share, high, level, confidence):
        low = high
        high = 2 * high
        if high > _MOST_ROWS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if _would_do(share, middle, level, confidence):
            high = middle
        else:
            low = middle
    return high


def _would_do(share: float, rows: int, level: float, confidence: float) -> bool:
    return upper_bound(math.ceil(share * rows), rows, confidence) <= level


def _advice_on_rows(enough: int | None, unit: str) -> str:
    """Return a sentence on how many rows would show the promise kept, rounded up to two digits."""
    if enough is None:
        return "Too few to say more: pass more of them to decide."
    unit_of_rounding = 10 ** max(len(str(enough)) - 2, 0)
    rounded = math.ceil(enough / unit_of_rounding) * unit_of_rounding
    return f"Too few to say more: about {count(rounded, unit)} would do, if as few differ."
