"""`certify_steps`: when may an item of a table stop, and keep the answer of the whole budget?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ponder._utils.rows import CHOOSE_AND_CERTIFY, split
from ponder.calibration.certifying import Candidate, certify
from ponder.calibration.control import RiskControl
from ponder.calibration.draws import certify_draws
from ponder.calibration.records import Record
from ponder.calibration.stopper import Stopper
from ponder.calibration.tables import Combine, read_steps
from ponder.policies.counting import Patience
from ponder.policies.halting import RightAnswer
from ponder.statistics.certificate import CONFIDENCE, LEVEL
from ponder.statistics.used import Used

__all__ = ["CertifiedSteps", "certify_steps"]

_BARS = 1.0 / (1.0 + np.exp(-np.linspace(12.0, -4.0, 161)))
"""Confidences that are tried, fixed without any data; dense where answers are certain."""
_LATEST_START = 5
"""Bars are tried from each step up to this one on: early answers may be certain and wrong."""


@dataclass(frozen=True, eq=False)
class CertifiedSteps(RiskControl):
    """The policy that was certified on a table, and what runs it.

    Args:
        stopper: Asked after each answer to an item; `save` writes it with its promise.
    """

    stopper: Stopper


def certify_steps(
    table: Any,
    *,
    combine: Combine = "last",
    tolerance: float | None = None,
    level: float = LEVEL,
    confidence: float = CONFIDENCE,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
) -> CertifiedSteps:
    """Choose when items stop, and certify how often the answer is not that of the whole budget.

    Votes stop by their lead, and means by their standard error, whose thresholds are tested on all
    items. If the last answer stands, a third of the items chooses between patience and a bar on the
    confidence, from some step on; the others certify. The bound is the exact binomial one.

    Args:
        table: Lines of items like those to come, as for `Record.from_table`.
        combine: How answers become the answer to an item: ``"last"``, ``"votes"`` or ``"mean"``.
        tolerance: For means: by how much a mean may differ from that of the whole budget.
        level: Upper limit of the share of items that get another answer, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).
        columns: Names of columns, if they are others: ``{"item": "question", "confidence": "p"}``.
        seed: Seed of the split.

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
        >>> found.stopper.should_stop([None, None, 4, 4]), found.stopper.should_stop([4] * 5)
        (False, True)
    """
    columns = dict(columns or {})
    options: dict[str, Any] = {"combine": combine, **columns}
    record = Record.from_table(table, **options)
    steps = read_steps(table, **options)
    promise: dict[str, Any] = {"level": level, "confidence": confidence, "costs": steps.costs}
    if combine == "last":
        choosing, certifying = split(record.row_ids, CHOOSE_AND_CERTIFY, seed=seed)
        found = certify(
            record.map(lambda values: values[choosing]),
            record.map(lambda values: values[certifying]),
            _candidates(record),
            **promise,
        )
    else:
        found = certify_draws(record, tolerance=tolerance, **promise)
    policy = found.policy.with_facts(unit="item")
    used = Used.of(steps.keys)
    stopper = Stopper(policy, record.num_steps, combine, tolerance, columns, used)
    return CertifiedSteps(**{**vars(found), "policy": policy}, stopper=stopper)


def _candidates(record: Record) -> list[Candidate]:
    """Return patience, and bars on the confidence from each of the first steps on."""
    candidates: list[Candidate] = [(Patience(1), range(record.num_steps, 0, -1))]
    if record.hazard_logits is not None:
        bar = RightAnswer(0.5)
        candidates.append((bar, _BARS))
        for start in range(2, min(_LATEST_START, record.num_steps - 1) + 1):
            candidates.append((bar.after(start), _BARS))
    return candidates
