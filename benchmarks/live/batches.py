"""Certificates about the rows of a batch, beside those about rows like them: calls, and promises that were broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder.statistics.answers import certify_answers

__all__ = ["batches"]

LEVELS = (0.02, 0.05)
DRAWN = (500, 1000, 2000)


def batches(answers: Any, sure: Any, labels: Any, draws: int) -> Iterator[dict[str, Any]]:
    """Yield a row of the results for each level, number of drawn rows, and promise.

    Args:
        answers: The cheap model's answers to the batch, `(rows,)`.
        sure: Their confidences, `(rows,)`.
        labels: The reference's answers, `(rows,)`.
        draws: How often rows are drawn.
    """
    for level, drawn, finite in product(LEVELS, DRAWN, (False, True)):
        certified = [
            _certified(answers, sure, labels, level, _draw(len(answers), drawn, seed), finite)
            for seed in range(draws)
        ]
        yield {
            "level": level,
            "drawn": drawn,
            "finite": finite,
            "asked": round(float(np.mean([one.asked for one in certified])), 5),
            "wrong": round(float(np.mean([one.wrong for one in certified])), 5),
            "broken": sum(one.wrong > level for one in certified),
        }


@dataclass(frozen=True)
class _Certified:
    """The shares of a batch that were asked, and that got another answer."""

    asked: float
    wrong: float


def _draw(rows: int, drawn: int, seed: int) -> NDArray[np.bool_]:
    """Return which rows are drawn, `(rows,)`."""
    known = np.zeros(rows, dtype=bool)
    known[np.random.default_rng(seed).choice(rows, drawn, replace=False)] = True
    return known


def _certified(
    answers: Any, sure: Any, labels: Any, level: float, known: NDArray[np.bool_], finite: bool
) -> _Certified:
    """Certify by the drawn rows, and return what then happens to the batch."""
    references = np.where(known, labels, "").tolist()
    found = certify_answers(answers.tolist(), sure.tolist(), references, level=level, finite=finite)
    taken = found.takes(sure.tolist()) & ~known
    wrong = taken & (answers != labels)
    return _Certified(float((~taken).mean()), float(wrong.mean()))
