"""Disjoint sides: rows that chose a policy do not judge it, and both runs are of the same weights."""

from __future__ import annotations

import numpy as np

from ponder.calibration.families import Record
from ponder.errors import ArgumentError

__all__ = ["check_fresh"]


def check_fresh(test: Record, seen: Record, argument: str = "test") -> None:
    """Raise where a record holds rows of another one, by their content ids, or is a run of other weights."""
    if None not in (test.weights, seen.weights) and test.weights != seen.weights:
        raise ArgumentError(
            argument, expected=f"a run of the weights {seen.weights}", got=test.weights, remedy="Record both anew."
        )
    if not (test.content_ids and seen.content_ids):  # positions: equal numbers are other rows
        return
    known = int(np.isin(np.asarray(test.row_ids), np.asarray(seen.row_ids)).sum())
    if known:
        raise ArgumentError(
            argument,
            expected="rows on which nothing was chosen",
            got=f"{known} of {len(test)} rows that were",
            remedy="Split the data first: ponder.split(texts).",
        )
