"""The order of policies in which an audit steps back: each leaves later than the one before it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ponder.analysis.policy_grid import leaves_later
from ponder.errors import ArgumentError
from ponder.policies import ExitPolicy, LastStep
from ponder.policies.certified import without_certificate

__all__ = ["check_order"]


def check_order(policies: Sequence[ExitPolicy]) -> None:
    """Refuse policies of which one leaves earlier than the one before it, as far as their thresholds tell.

    Raises:
        ArgumentError: They are not from the cheapest to the safest.

    Example:
        >>> from ponder.monitor.order import check_order
        >>> check_order([policies.Confidence(0.8), policies.Confidence(0.9)])
    """
    for one, other in itertools.pairwise(policies):
        inside, later = without_certificate(one), without_certificate(other)  # in which two differ anyway
        if isinstance(inside, LastStep) or leaves_later(inside, later) is False:
            raise ArgumentError(
                "policies",
                expected="from the cheapest to the safest: each leaves later than the one before it",
                got=f"{other!r} after {one!r}",
                remedy="Turn the order round.",
            )
