"""Certificates about the rows of a batch, beside those about rows like them: calls, and promises that were broken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ponder.calibration.answers import certify_answers

__all__ = ["batches"]

LEVELS, DRAWN = (0.02, 0.05), (500, 1000, 2000)


def batches(answers: Any, sure: Any, labels: Any, draws: int) -> Iterator[dict[str, Any]]:
    """Yield a row of the results for each level, number of drawn rows, and promise.

    Args:
        answers: The cheap model's answers to the batch, `(rows,)`.
        sure: Their confidences, `(rows,)`.
        labels: The reference's answers, `(rows,)`.
        draws: How often rows are drawn.
    """
    rows = len(answers)
    for level in LEVELS:
        for drawn in DRAWN:
            for finite in (False, True):
                asked, wrong = list[float](), list[float]()
                for seed in range(draws):
                    chosen = np.random.default_rng(seed).choice(rows, drawn, replace=False)
                    known = np.zeros(rows, dtype=bool)
                    known[chosen] = True
                    references = np.where(known, labels, "").tolist()
                    found = certify_answers(
                        answers.tolist(), sure.tolist(), references, level=level, finite=finite
                    )
                    taken = found.takes(sure.tolist()) & ~known
                    asked.append(float((~taken).mean()))
                    wrong.append(float((taken & (answers != labels)).mean()))
                yield {
                    "level": level,
                    "drawn": drawn,
                    "finite": finite,
                    "asked": round(float(np.mean(asked)), 5),
                    "wrong": round(float(np.mean(wrong)), 5),
                    "broken": sum(share > level for share in wrong),
                }
