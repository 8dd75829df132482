"""Where a condition ends, by halving; on plain numbers, so that what does without PyTorch can use it too."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["bisect"]


def bisect(
    holds: Callable[[float], bool], inside: float, outside: float, *, halvings: int = 100
) -> tuple[float, float]:
    """Find the border between a place where a condition holds and one where it does not, above or below.

    Args:
        holds: The condition.
        inside: A place where it holds.
        outside: One where it does not.
        halvings: How often the interval is halved.

    Returns:
        The last place that was found inside, and the last one outside: the ends that were given, where none was.

    Example:
        >>> inside, outside = bisect(lambda x: x**2 < 2, 0.0, 2.0)
        >>> inside**2 < 2 <= outside**2, round(outside, 4)
        (True, 1.4142)
    """
    for _ in range(halvings):
        middle = (inside + outside) / 2.0
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside, outside
