"""`certify_answers`: a threshold on confidences, an LLM's too, above which answers may be taken.

All that is needed are three columns: answers, their confidences, and the answers of a reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ponder._utils.checks import check_share
from ponder._utils.files import read_json
from ponder._utils.rounding import rounded_up
from ponder.calibration.bounds import binomial_cdf, rows_needed, upper_bound
from ponder.calibration.statement import CONFIDENCE, LEVEL, Promise, percent, threshold_text
from ponder.calibration.verdict import Verdict, judge
from ponder.errors import ArgumentError

__all__ = ["THRESHOLD", "CertifiedAnswers", "certify_answers"]

THRESHOLD = "ponder-threshold-2"
"""The format of the file that `ponder certify` writes."""
_VALUES = 1.0 / (1.0 + np.exp(-np.linspace(16.0, -16.0, 801)))
"""Thresholds from late exits to early ones, picked on no data."""


@dataclass(frozen=True)
class CertifiedAnswers:
    """A certified threshold on confidences.

    Args:
        threshold: Answers with a confidence above it are taken; None if nothing could be certified.
        level: Upper limit of the share of rows that are taken and differ from the reference, in (0,
            1).
        confidence: Probability with which the promise holds.
        rows: Number of rows with a reference.
        without_reference: Number of rows without one, which say nothing.
        taken: Share of the rows that are taken.
        observed: Share of the rows that are taken and differ.
        statement: The promise in one sentence, or why there is no promise.
    """

    threshold: float | None
    level: float
    confidence: float
    rows: int
    without_reference: int
    taken: float
    observed: float
    statement: str

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Read the file that `ponder certify` wrote."""
        card = read_json(file, THRESHOLD, "threshold")
        return cls(**{each.name: card[each.name] for each in fields(cls)})

    def takes(self, confidences: Sequence[float]) -> NDArray[np.bool_]:
        """Return which answers are taken, `(rows,)` bool; the reference must answer the others."""
        if self.threshold is None:
            return np.zeros(len(confidences), dtype=bool)
        taken: NDArray[np.bool_] = _checked(confidences) > self.threshold
        return taken

    def check(
        self, answers: Sequence[Any], confidences: Sequence[float], references: Sequence[Any]
    ) -> Verdict:
        """Judge the promise on fresh rows with a reference."""
        there, wrong = _compared(answers, references)
        taken = self.takes(confidences)
        if not there.any():
            raise _too_few(1, 0)
        differ = int((wrong & taken)[there].sum())
        return judge(differ, int(there.sum()), self.level, self.confidence, "fresh row")


def certify_answers(
    answers: Sequence[Any],
    confidences: Sequence[float],
    references: Sequence[Any],
    *,
    level: float = LEVEL,
    confidence: float = CONFIDENCE,
) -> CertifiedAnswers:
    """Certify the lowest threshold above which answers may be taken, by fixed-sequence testing.

    Args:
        answers: The answers, of a cheap model say.
        confidences: A probability in [0, 1] for each; NaN is never taken.
        references: The answers that are to be kept; a row whose reference is None, NaN or empty is
            left out.
        level: Upper limit of the share of all rows that are taken and differ, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).

    Raises:
        ArgumentError: Confidences outside [0, 1], or too few rows for the level.

    Example:
        >>> from ponder.calibration.answers import certify_answers
        >>> found = certify_answers(["yes", "no"] * 200, [0.9, 0.5] * 200, ["yes", "yes"] * 200)
        >>> found.taken, found.takes([0.95, 0.4])
        (0.5, array([ True, False]))
    """
    check_share("level", level)
    check_share("confidence", confidence)
    certainty = _checked(confidences)
    there, wrong = _compared(answers, references)
    rows = int(there.sum())
    needed = rows_needed(level, confidence)
    if rows < needed:
        raise _too_few(needed, rows, level, confidence)
    certainty = certainty[there]
    wrong = wrong[there]
    allowed = int(np.searchsorted(binomial_cdf(rows, level), 1.0 - confidence, side="right")) - 1
    differ = np.array([(wrong & (certainty > value)).sum() for value in _VALUES])
    passed = int(np.argmax(np.append(differ > allowed, True)))
    threshold = float(_VALUES[passed - 1]) if passed else None
    taken = np.zeros(rows, dtype=bool) if threshold is None else certainty > threshold
    return CertifiedAnswers(
        threshold=threshold,
        level=level,
        confidence=confidence,
        rows=rows,
        without_reference=len(there) - rows,
        taken=float(taken.mean()),
        observed=float((wrong & taken).mean()),
        statement=_statement(threshold, level, confidence, rows, int(differ[0])),
    )


def _statement(
    threshold: float | None, level: float, confidence: float, rows: int, differ: int
) -> str:
    if threshold is not None:
        rule = (
            f"Take answers with a confidence above {threshold_text(threshold)}, "
            "and ask the reference for the others"
        )
        return Promise(rule, "other answers", level, confidence, rows, "row").sentence
    least = rounded_up(upper_bound(differ, rows, confidence), 2)
    return (
        f"No promise of {percent(level)}: of {rows} rows {differ} differ although their "
        f"confidence is above {threshold_text(float(_VALUES[0]))}. A level of {least} is the "
        "least that could be promised."
    )


def _checked(confidences: Sequence[float]) -> NDArray[np.float64]:
    """Return confidences as an array, −∞ if they are not numbers; refuse those outside [0, 1]."""
    certainty = np.array(confidences, dtype=np.float64)
    outside = (certainty < 0.0) | (certainty > 1.0)
    if outside.any():
        row = int(outside.argmax())
        expected = "probabilities in [0, 1]"
        got = f"{certainty[row]:g} in row {row + 1}"
        remedy = "Divide percentages by 100, and pass logits through a sigmoid."
        raise ArgumentError("confidences", expected=expected, got=got, remedy=remedy)
    return np.nan_to_num(certainty, nan=-np.inf)


def _compared(
    answers: Sequence[Any], references: Sequence[Any]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which rows have a reference, and whose answer is not that of the reference."""
    texts = ["" if each is None or each != each else str(each).strip() for each in references]
    there = np.array([bool(text) for text in texts], dtype=bool)
    wrong = [str(a).strip() != text for a, text in zip(answers, texts, strict=True)]
    return there, np.array(wrong, dtype=bool)


def _too_few(
    needed: int, got: int, level: float = LEVEL, confidence: float = CONFIDENCE
) -> ArgumentError:
    expected = (
        f"{needed} rows or more with a reference, for {level:g} with confidence {confidence:g}"
    )
    remedy = "Give more rows, or a higher level."
    return ArgumentError("rows", expected=expected, got=str(got), remedy=remedy)
