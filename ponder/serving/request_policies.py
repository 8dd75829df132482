"""The policy of one request: the service's own, or that with another threshold, or with a bound on the steps."""

from __future__ import annotations

import dataclasses

from ponder._utils.validation import check_int, check_real
from ponder.errors import ArgumentError
from ponder.policies import Certified, ExitPolicy
from ponder.policies.base import PolicyWrapper

__all__ = ["bounded", "with_threshold"]


def with_threshold(policy: ExitPolicy, value: float, num_steps: int, width: int) -> ExitPolicy:
    """The policy with another threshold; a certificate, which was about its own threshold, is left out.

    Args:
        policy: The policy.
        value: The threshold.
        num_steps: N.
        width: Size of the last dimension of the outputs.

    Raises:
        ArgumentError: The policy has no single threshold, or cannot have this one.

    Example:
        >>> from ponder import policies
        >>> with_threshold(policies.Confidence(0.9).before(3), 0.5, 6, 2)
        Before(policy=Confidence(threshold=0.5), step=3)
    """
    if policy.tunable is not None:
        tunable = policy.tunable
        high = tunable.high(num_steps, width) if callable(tunable.high) else tunable.high
        if tunable.whole and isinstance(value, float) and not value.is_integer():
            remedy = f"Pass threshold={min(max(round(value), int(tunable.low)), int(high))}."
            check_int("threshold", value, int(tunable.low), int(high), remedy=remedy)
        check_real("threshold", value, tunable.low, high)
        return policy.with_threshold(value)
    if isinstance(policy, Certified):
        return with_threshold(policy.policy, value, num_steps, width)
    if isinstance(policy, PolicyWrapper):
        return dataclasses.replace(policy, policy=with_threshold(policy.policy, value, num_steps, width))
    raise ArgumentError(
        "threshold",
        expected=f"none: {policy!r} has no single threshold",
        got=value,
        remedy="Leave it out, or pass max_steps.",
    )


def bounded(policy: ExitPolicy, max_steps: int, num_steps: int) -> ExitPolicy:
    """The policy with every row out at `max_steps` at the latest.

    Raises:
        ArgumentError: It is no step of the model.
    """
    check_int("max_steps", max_steps, 1, num_steps)
    return policy if max_steps == num_steps else policy.before(max_steps)
