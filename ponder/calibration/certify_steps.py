"""`certify_steps`: when may an item of a table stop, and keep the answer of its last step?"""

from __future__ import annotations

from typing import Any

import numpy as np

from ponder._utils.rows import CHOOSE_AND_CERTIFY, split
from ponder.calibration.certifying import Candidate, certify
from ponder.calibration.control import RiskControl
from ponder.calibration.records import Record
from ponder.calibration.tables import read_steps
from ponder.policies.counting import Patience
from ponder.policies.halting import RightAnswer
from ponder.statistics.certificate import CONFIDENCE, LEVEL

__all__ = ["certify_steps"]

_BARS = 1.0 / (1.0 + np.exp(-np.linspace(12.0, -4.0, 161)))
"""Confidences that are tried, fixed without any data; dense where answers are certain."""
_LATEST_START = 5
"""Bars are tried from each step up to this one on: early answers may be certain and wrong."""


def certify_steps(
    table: Any,
    *,
    level: float = LEVEL,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    **columns: str,
) -> RiskControl:
    """Choose when items stop, and certify how often the answer is not that of the last step.

    A third of the items chooses between patience and a bar on the confidence, from some step on;
    the others certify by the exact binomial bound.

    Args:
        table: Lines of items like those to come, as for `Record.from_table`.
        level: Upper limit of the share of items that get another answer, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).
        seed: Seed of the split.
        columns: Names of columns, as for `Record.from_table`.

    Example:
        >>> from ponder.calibration import certify_steps
        >>> lines = [
        ...     {"item": item, "step": step, "answer": item % 7 if step > 2 else None}
        ...     for item in range(600)
        ...     for step in range(1, 9)
        ... ]
        >>> found = certify_steps(lines, level=0.02)
        >>> found.met, found.mean_exit_step
        (True, 5.0)
    """
    record = Record.from_table(table, **columns)
    choosing, certifying = split(record.row_ids, CHOOSE_AND_CERTIFY, seed=seed)
    candidates: list[Candidate] = [(Patience(1), range(record.num_steps, 0, -1))]
    if record.hazard_logits is not None:
        bar = RightAnswer(0.5)
        candidates.append((bar, _BARS))
        for start in range(2, min(_LATEST_START, record.num_steps - 1) + 1):
            candidates.append((bar.after(start), _BARS))
    return certify(
        record.map(lambda values: values[choosing]),
        record.map(lambda values: values[certifying]),
        candidates,
        level=level,
        confidence=confidence,
        costs=read_steps(table, **columns).costs,
    )
