"""`certify_answers`: certify a threshold on the confidences of any model, an LLM for example.

It needs three columns: answers, their confidences, and the answers of a reference. Thresholds are
tested from the highest to lower ones, and the last that passes is taken.

The promise is about rows like these, or, with `finite`, about the rows of a batch, of which the
reference has answered some that were drawn at random. These have its answer, so more of the others
may differ, and the bound is that of drawing from a finite batch (`most_failures_in_batch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ponder._utils.checks import check_share
from ponder._utils.files import reading
from ponder._utils.plain import from_plain
from ponder._utils.rounding import rounded_down, rounded_up, threshold_text
from ponder._utils.seals import read_sealed
from ponder.errors import ArgumentError, CheckpointError
from ponder.statistics.bounds import (
    binomial_cdf,
    most_failures_in_batch,
    rows_needed,
    upper_bound,
)
from ponder.statistics.certificate import CONFIDENCE, LEVEL, Certificate, count, percent
from ponder.statistics.sequence import first_failing
from ponder.statistics.verdict import Verdict, judge

__all__ = ["THRESHOLD", "CertifiedAnswers", "certify_answers"]

Bools: TypeAlias = NDArray[np.bool_]
THRESHOLD = "ponder-threshold-2"
"""The format of the file that `ponder certify` writes."""
_VALUES = 1.0 / (1.0 + np.exp(-np.linspace(16.0, -16.0, 801)))
"""Thresholds from the highest to the lowest, fixed without any data."""


@dataclass(frozen=True)
class CertifiedAnswers:
    """A certified threshold on confidences.

    Args:
        threshold: Answers with a confidence above it are taken; None if nothing could be certified.
        level: Upper limit of the share of rows that are taken and differ from the reference, in (0,
            1).
        confidence: Probability with which the promise holds.
        rows: Number of rows with a reference.
        without_reference: Number of rows without a reference, which are left out unless `finite`.
        taken: Share of the rows with a reference that are taken.
        observed: Share of the rows with a reference that are taken and differ.
        statement: The promise in one sentence, or the reason why nothing is promised.
        to_ask: Number of rows that the reference is still to answer if the promise is about the
            rows of a batch alone; None if it is about rows to come.
    """

    threshold: float | None
    level: float
    confidence: float
    rows: int
    without_reference: int
    taken: float
    observed: float
    statement: str
    to_ask: int | None = None

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Read the file that `ponder certify` wrote.

        Raises:
            CheckpointError: It is damaged, or was edited: it is all promise.
        """
        saved = read_sealed(file, THRESHOLD, "threshold")
        if saved.changed():
            raise CheckpointError(f"{file}: changed after it was certified. Certify again.")
        with reading(file, "threshold"):
            return from_plain(cls, {each.name: saved.settings[each.name] for each in fields(cls)})

    def takes(self, confidences: Sequence[float]) -> NDArray[np.bool_]:
        """Return which answers are taken, `(rows,)` bool; the reference must answer the others."""
        if self.threshold is None:
            return np.zeros(len(confidences), dtype=bool)
        taken: Bools = _checked_confidences(confidences) > self.threshold
        return taken

    def check(
        self,
        answers: Sequence[object],
        confidences: Sequence[float],
        references: Sequence[object],
    ) -> Verdict:
        """Judge the promise on fresh rows with a reference.

        Raises:
            ArgumentError: No row has a reference, or the promise is about the rows of a batch.
        """
        if self.to_ask is not None:
            raise ArgumentError(
                "finite",
                expected="a promise about rows to come",
                got="one about the rows of a batch alone",
                remedy="Certify without `finite`, or compare the batch with its references.",
            )
        compared = _compare(answers, references)
        taken = self.takes(confidences)
        rows = int(compared.has_reference.sum())
        if rows == 0:
            raise _too_few_rows(1, 0)
        differ = int((compared.differs & taken)[compared.has_reference].sum())
        return judge(differ, rows, self.level, self.confidence, "fresh row")


def certify_answers(
    answers: Sequence[object],
    confidences: Sequence[float],
    references: Sequence[object],
    *,
    level: float = LEVEL,
    confidence: float = CONFIDENCE,
    finite: bool = False,
) -> CertifiedAnswers:
    """Certify the lowest threshold on confidences above which answers may be taken.

    Thresholds are tested in a fixed sequence by the exact binomial bound, or that of a finite
    batch.

    Args:
        answers: The answers, for example of a cheap model.
        confidences: A probability in [0, 1] for each answer; an answer with NaN is never taken.
        references: The answers of the reference; a row whose reference is None, NaN or empty is
            left out unless `finite`.
        level: Upper limit of the share of all rows that are taken and differ, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).
        finite: Whether the promise is about these rows alone: at most `level` of all of them get
            another answer, if rows with a reference get that, and others the answer if it is taken,
            else the reference's. The rows with a reference must have been drawn at random.

    Raises:
        ArgumentError: Confidences outside [0, 1], or too few rows for the level.

    Example:
        >>> from ponder.statistics.answers import certify_answers
        >>> found = certify_answers(["yes", "no"] * 200, [0.9, 0.5] * 200, ["yes", "yes"] * 200)
        >>> found.taken, found.takes([0.95, 0.4])
        (0.5, array([ True, False]))
    """
    check_share("level", level)
    check_share("confidence", confidence)
    of_all = _checked_confidences(confidences)
    compared = _compare(answers, references)
    certainty = of_all[compared.has_reference]
    certainty_of_others = of_all[~compared.has_reference]
    differs = compared.differs[compared.has_reference]
    rows = len(differs)
    others = len(of_all) - rows
    needed = rows_needed(level, confidence)
    if finite:
        may_differ = int(level * len(of_all))
        needed = min(needed, max(len(of_all) - may_differ, 1))
        allowed = most_failures_in_batch(rows, others, may_differ, confidence)
    else:
        allowed = int(np.searchsorted(binomial_cdf(rows, level), 1.0 - confidence, side="right"))
        allowed -= 1
    if rows == 0 or allowed < 0:
        raise _too_few_rows(needed, rows, level, confidence)
    wrong = np.sort(certainty[differs])
    failures = len(wrong) - np.searchsorted(wrong, _VALUES, side="right")  # above each value
    num_passed = int(first_failing(failures, allowed))
    threshold = None
    taken = np.zeros(rows, dtype=bool)
    if num_passed > 0:
        threshold = float(_VALUES[num_passed - 1])
        taken = certainty > threshold
    to_ask = None
    if finite:
        to_take = certainty_of_others > (np.inf if threshold is None else threshold)
        to_ask = others - int(to_take.sum())
    draft = CertifiedAnswers(
        threshold=threshold,
        level=level,
        confidence=confidence,
        rows=rows,
        without_reference=others,
        taken=float(taken.mean()),
        observed=float((differs & taken).mean()),
        statement="",
        to_ask=to_ask,
    )
    return replace(draft, statement=_statement(draft, int(failures[0])))


def _statement(found: CertifiedAnswers, differ: int) -> str:
    """Return the promise in words, or why there is none.

    Args:
        found: What was certified.
        differ: How many rows differ above the highest threshold.
    """
    limit = percent(found.level)
    if found.threshold is None:
        highest = threshold_text(float(_VALUES[0]))
        why = (
            f"No promise of {limit}: of {found.rows} rows {differ} differ although their "
            f"confidence is above {highest}."
        )
        if found.to_ask is not None:
            return why
        least = rounded_up(upper_bound(differ, found.rows, found.confidence), 2)
        return f"{why} A level of {least} is the least that could be promised."
    taking = f"Take answers with a confidence above {threshold_text(found.threshold)}"
    rule = f"{taking}, and ask the reference for the others"
    promise = Certificate(rule, "other answers", found.level, found.confidence, found.rows)
    if found.to_ask is None:
        return promise.sentence
    batch = count(found.rows + found.without_reference, "row")
    return (
        f"{taking}, and ask the reference for the other {found.to_ask}: other answers in at most "
        f"{limit} of these {batch}, with {rounded_down(100 * found.confidence)}% confidence "
        f"(certified on {count(found.rows, 'row')} drawn from them)."
    )


def _checked_confidences(confidences: Sequence[float]) -> NDArray[np.float64]:
    """Return confidences as an array, with −∞ for NaN; refuse those outside [0, 1]."""
    certainty = np.array(confidences, dtype=np.float64)
    outside = (certainty < 0.0) | (certainty > 1.0)
    if outside.any():
        row = int(outside.argmax())
        raise ArgumentError(
            "confidences",
            expected="probabilities in [0, 1]",
            got=f"{certainty[row]:g} in row {row + 1}",
            remedy="Divide percentages by 100, and pass logits through a sigmoid.",
        )
    return np.nan_to_num(certainty, nan=-np.inf)


@dataclass(frozen=True, eq=False)
class _Compared:
    """Answers compared with those of a reference.

    Args:
        has_reference: Which rows have a reference, `(rows,)`.
        differs: Whether the answer is another than the reference, `(rows,)`.
    """

    has_reference: Bools
    differs: Bools


def _compare(answers: Sequence[object], references: Sequence[object]) -> _Compared:
    texts = [_reference_text(each) for each in references]
    differs = [str(answer).strip() != text for answer, text in zip(answers, texts, strict=True)]
    return _Compared(np.array(texts, dtype=object) != "", np.array(differs, dtype=bool))


def _reference_text(reference: object) -> str:
    """Return the reference as text; empty for None and NaN."""
    if reference is None or reference != reference:
        return ""
    return str(reference).strip()


def _too_few_rows(
    needed: int, got: int, level: float = LEVEL, confidence: float = CONFIDENCE
) -> ArgumentError:
    return ArgumentError(
        "rows",
        expected=f"{needed} rows or more with a reference, for {level:g} "
        f"with confidence {confidence:g}",
        got=str(got),
        remedy="Give more rows, or a higher level.",
    )
