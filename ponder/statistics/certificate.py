"""The certificate of a promise: its facts, and the sentence that they make.

Exits, cascades, the winner of a race, rerankers, loops and certified thresholds all have one
`Certificate`, in functions, commands and files, so that their promises have one form. Limits are
rounded up and confidences down: the sentence never states more than was certified.

    Take answers with a confidence above 0.93, and ask the reference for the others: other answers
    on at most 2% of texts like these, with 95% confidence (certified on 800 texts that chose
    nothing).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ponder._utils.rounding import rounded_down, rounded_up

__all__ = ["CONFIDENCE", "LEVEL", "Certificate", "count", "percent"]

LEVEL = 0.02
"""Default share of answers that may differ; the same in all functions and commands."""
CONFIDENCE = 0.95
"""Default probability with which a promise holds."""


@dataclass(frozen=True)
class Certificate:
    """The facts of a promise: what it says, how it was certified, and what it is about.

    Args:
        rule: What to do, as an imperative: ``"Take answers with …, and ask the reference for the
            others"``.
        change: What may differ: ``"other answers"``.
        level: Upper limit of the share of rows that differ, in (0, 1).
        confidence: Probability, over the draw of the rows that certify, that the promise holds;
            None if it is about the mean over such draws (conformal risk control).
        rows: Number of rows that certified it.
        unit: Noun of a row: ``"text"``, ``"query"``.
        given: Number of all rows, of which `rows` count; None if all count.
        is_mean: Whether the level limits the mean of a loss, and not a share of rows.
        why: Why nothing is promised; empty if something is.
        risk: Name of the risk.
        bound: Name of the bound, or ``"conformal"``.
        threshold_name: Name of the threshold that was chosen.
        threshold_value: Its value; None if nothing is promised.
        p_value: The p-value of that threshold, if the bound has one.
        path: The values that were tested, in order, with the empirical risk and the p-value of
            each.
        num_steps: N of the run that certified it, the only number of steps that it serves.
        weights: SHA-256 of the weights of that run, the only ones that the promise covers; None if
            it is not known.

    Example:
        >>> from ponder.statistics.certificate import Certificate
        >>> Certificate("Stop every text at step 3", "other answers", 0.0101, 0.95, 800).claim
        'other answers on at most 1.01% of rows like these, with 95% confidence'
    """

    rule: str
    change: str
    level: float
    confidence: float | None
    rows: int
    unit: str = "row"
    given: int | None = None
    is_mean: bool = False
    why: str = ""
    risk: str = "disagreement"
    bound: str = "exact_binomial"
    threshold_name: str = "threshold"
    threshold_value: float | None = None
    p_value: float | None = None
    path: tuple[tuple[float, float, float], ...] = field(default=(), repr=False)
    num_steps: int | None = None
    weights: str | None = field(default=None, repr=False)

    @property
    def met(self) -> bool:
        """Whether something is promised."""
        return not self.why

    @property
    def sentence(self) -> str:
        """The promise in words, or why nothing is promised."""
        if self.why:
            return f"No promise of {self.claim}: {self.why}."
        certified = f"{count(self.rows, self.unit)} that chose nothing"
        if self.given not in (None, self.rows):
            certified = f"the {self.rows} of {self.given} rows that count, which chose nothing"
        sentence = f"{self.rule}: {self.claim} (certified on {certified})."
        if self.confidence is None:
            # Full depth, which has losses too, then is not what the mean is over.
            sentence += " Draws that certify nothing count as 0."
        return sentence

    @property
    def claim(self) -> str:
        """What is promised, without what to do and without what certified it."""
        rows = f"{_plural(self.unit)} like these"
        level = f"at most {percent(self.level)}"
        if self.is_mean:
            return f"a mean {self.change} of {level} on {rows}, {self._certainty}"
        return f"{self.change} on {level} of {rows}, {self._certainty}"

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
