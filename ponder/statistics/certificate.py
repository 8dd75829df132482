"""The sentence of a promise: what to do, what may differ, how often, and with what confidence.

Exits, cascades, the winner of a race, rerankers, loops and certified thresholds all state their
promise by one `Promise`, in functions and in commands, so that it has one form. Limits are rounded
up and confidences down: the sentence never states more than was certified.

    Take answers with a confidence above 0.93, and ask the reference for the others: other answers
    on at most 2% of texts like these, with 95% confidence (certified on 800 texts that chose
    nothing).
"""

from __future__ import annotations

from dataclasses import dataclass

from ponder._utils.rounding import rounded_down, rounded_up

__all__ = ["CONFIDENCE", "LEVEL", "Promise", "count", "percent"]

LEVEL = 0.02
"""Default share of answers that may differ; the same in all functions and commands."""
CONFIDENCE = 0.95
"""Default probability with which a promise holds."""


@dataclass(frozen=True)
class Promise:
    """A promise, in the parts of its sentence.

    Args:
        rule: What to do, as an imperative: ``"Take answers with …, and ask the reference for the
            others"``.
        change: What may differ: ``"other answers"``.
        level: Upper limit of the share of rows that differ, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1); None if it is about the
            mean over draws of the rows that certify (conformal risk control).
        rows: Number of rows that certified it.
        unit: Noun of a row: ``"text"``, ``"query"``.
        given: Number of all rows, of which `rows` count; None if all count.
        is_mean: Whether the level limits the mean of a loss, and not a share of rows.

    Example:
        >>> Promise("Stop every text at step 3", "other answers", 0.0101, 0.95, 800).limit
        'at most 1.01% other answers, with 95% confidence'
    """

    rule: str
    change: str
    level: float
    confidence: float | None
    rows: int
    unit: str = "text"
    given: int | None = None
    is_mean: bool = False

    @property
    def sentence(self) -> str:
        """The promise in words."""
        certified = f"{count(self.rows, self.unit)} that chose nothing"
        if self.given not in (None, self.rows):
            certified = f"the {self.rows} of {self.given} rows that count, which chose nothing"
        return f"{self.rule}: {self.claim} (certified on {certified})."

    @property
    def claim(self) -> str:
        """What is promised, without what to do and without what certified it."""
        rows = f"{_plural(self.unit)} like these"
        level = f"at most {percent(self.level)}"
        if self.is_mean:
            return f"a mean {self.change} of {level} on {rows}, {self._certainty}"
        return f"{self.change} on {level} of {rows}, {self._certainty}"

    @property
    def limit(self) -> str:
        """The limit alone: ``"at most 1% other answers, with 95% confidence"``."""
        return f"at most {percent(self.level)} {self.change}, {self._certainty}"

    @property
    def _certainty(self) -> str:
        if self.confidence is None:
            return "in the mean over draws of the rows that certify"
        return f"with {rounded_down(100 * self.confidence)}% confidence"


def percent(share: float, digits: int = 3) -> str:
    """Return an upper limit as a percentage that is not below it.

    Example:
        >>> percent(0.01), percent(0.01761)
        ('1%', '1.77%')
    """
    return f"{rounded_up(100 * share, digits)}%"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: ``"1 text"``, ``"2 texts"``, ``"2 queries"``."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {_plural(noun)}"


def _plural(noun: str) -> str:
    if noun.endswith("y"):
        return f"{noun[:-1]}ies"
    return f"{noun}s"
