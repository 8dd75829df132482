"""Numbers of promises in words, rounded to the side on which the promise still holds."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

__all__ = ["rounded_down", "rounded_up", "threshold_text"]


def rounded_up(value: float, digits: int = 6) -> str:
    """Format an upper bound with at most `digits` significant digits, never below the value.

    Args:
        value: A finite number.
        digits: Significant digits.

    Example:
        >>> rounded_up(0.05), rounded_up(0.01231, 3), f"{100 * 0.07}", rounded_up(100 * 0.07)
        ('0.05', '0.0124', '7.000000000000001', '7')
    """
    return _rounded(value, digits, ROUND_CEILING)


def rounded_down(value: float, digits: int = 6) -> str:
    """Format a lower bound, a confidence or a speed-up, never above the value.

    Example:
        >>> rounded_down(0.95), rounded_down(0.99999999), rounded_down(2.4999, 3)
        ('0.95', '0.999999', '2.49')
    """
    return _rounded(value, digits, ROUND_FLOOR)


def threshold_text(value: float, *, up: bool = True) -> str:
    """Return a threshold with six digits; with twelve if six would round a share up to 1."""
    rounded = rounded_up if up else rounded_down
    short = rounded(value)
    if value < 1.0 <= float(short):
        return rounded(value, 12)
    return short


def _rounded(value: float, digits: int, side: str) -> str:
    """Format a number as `:g` does, rounded to one side."""
    exact = Decimal(f"{value:.15g}")  # the intended decimal: 100 * 0.07 is 7
    if not exact:
        return "0"
    last_digit = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    rounded = exact.quantize(last_digit, rounding=side)
    return f"{float(rounded):.{digits}g}"
