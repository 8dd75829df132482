"""`certify_draws`: when to stop draws in no order, such as votes, samples or trees of a forest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ponder._utils.checks import check_real
from ponder.calibration.control import RiskControl, control_risk
from ponder.calibration.records import Record
from ponder.calibration.risks import Moved, RiskLike
from ponder.errors import ArgumentError
from ponder.policies.lead import Lead, StandardError
from ponder.statistics.certificate import CONFIDENCE, LEVEL

__all__ = ["certify_draws"]

_SHARES_OF_TOLERANCE = np.geomspace(1e-3, 10.0, 121)
"""Standard errors that are tried, as shares of the tolerance: fixed without any data."""


def certify_draws(
    record: Record,
    *,
    tolerance: float | None = None,
    risk: RiskLike | None = None,
    level: float = LEVEL,
    confidence: float = CONFIDENCE,
    costs: Sequence[float] | None = None,
) -> RiskControl:
    """Certify the lead of votes, or the standard error of a mean, at which items stop.

    Args:
        record: `Record.from_votes` or `Record.from_values`, of items like those to come.
        tolerance: For means: by how much a mean may differ from that of all draws.
        risk: As for `ponder.control_risk`; by default ``"disagreement"`` with all draws, and for
            means `Moved(tolerance)`.
        level: Upper limit of the risk, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).
        costs: Cost of stopping after each step, `(steps,)`; by default step n costs n.

    Example:
        >>> import numpy as np
        >>> from ponder.calibration import Record, certify_draws
        >>> votes = np.random.default_rng(0).random((500, 30)) < 0.9
        >>> found = certify_draws(Record.from_votes(votes.astype(int)), level=0.02)
        >>> found.met, round(found.mean_exit_step)
        (True, 3)
    """
    if not record.meaning.numbers:
        return control_risk(
            record,
            Lead,
            risk=risk or "disagreement",
            level=level,
            confidence=confidence,
            costs=costs,
        )
    if tolerance is None:
        raise ArgumentError(
            "tolerance",
            expected="the distance below which two numbers are one answer",
            got="None",
            remedy="Pass tolerance=0.1, say, in the unit of the numbers.",
        )
    check_real("tolerance", tolerance, open_low=True)
    return control_risk(
        record,
        StandardError,
        risk=risk or Moved(tolerance),
        level=level,
        confidence=confidence,
        grid=tolerance * _SHARES_OF_TOLERANCE,
        costs=costs,
    )
