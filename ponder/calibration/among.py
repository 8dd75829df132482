"""Calibration among several families of policies, one fixed step for all rows always among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ponder.analysis.policy_grid import FamilyLike
from ponder.errors import ArgumentError
from ponder.policies import FixedStep

if TYPE_CHECKING:
    from ponder.calibration.calibrate import Calibration

__all__ = ["best_among"]


def best_among(
    families: Sequence[FamilyLike], calibrated: Callable[[FamilyLike], Calibration], *, cheapest: bool
) -> Calibration:
    """The family whose calibration is best, `FixedStep` before all others: a tie goes to what looks at nothing.

    So what comes out is never worse, on the data that it saw, than one step for all rows at no greater cost.

    Args:
        families: Families of policies, at least one.
        calibrated: Calibrates one of them to the target.
        cheapest: Whether the target asks for the least cost, or else for the best score.

    Raises:
        ArgumentError: There are none, or whatever the calibration of one refuses.
    """
    if not families:
        raise ArgumentError(
            "policies", expected="at least one family", got="none", remedy="Pass policies.Confidence, say."
        )
    if FixedStep not in families:
        families = [FixedStep, *families]
    tried = [calibrated(family) for family in sorted(families, key=lambda family: family is not FixedStep)]
    met = [each for each in tried if each.met] or tried[:1]
    best = met[0]
    for each in met[1:]:
        better = each.point.cost < best.point.cost if cheapest else each.point.score > best.point.score
        same = each.point.cost == best.point.cost if cheapest else each.point.score == best.point.score
        further = each.point.score > best.point.score if cheapest else each.point.cost < best.point.cost
        if better or (same and further):
            best = each
    chosen = type(best.policy).__name__
    return replace(best, statement=f"{chosen}, the best of {len(families)} families, {best.statement}")
