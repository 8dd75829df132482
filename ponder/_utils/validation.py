"""Checks of arguments: each refuses a bad value with what was expected, what came and what to do.

The order of the parameters is always the argument's name, its value, and what is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Number
from typing import Any

from ponder.errors import ArgumentError, ArgumentTypeError

__all__ = ["check_choice", "check_flag", "check_int", "check_real", "check_share", "check_type"]


def _remedy(argument: str, value: object, kind: str, remedy: str) -> str:
    """What to do: numbers of NumPy and PyTorch are none that JSON can hold."""
    is_number = not isinstance(value, int | float) and (isinstance(value, Number) or hasattr(value, "item"))
    return f"Pass a number of Python: {kind}({argument})." if is_number else remedy


def check_int(
    argument: str, value: Any, low: int | None = 1, high: int | None = None, *, remedy: str | None = None
) -> None:
    """Refuse what is not a whole number from `low` to `high` (None: without end); where any is one, it is the type."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if low is None and not whole:
        raise ArgumentTypeError(
            argument,
            expected="a whole number",
            got=repr(value),
            remedy=_remedy(argument, value, "int", remedy or f"Pass {argument}=0, say."),
        )
    if not whole or (low is not None and value < low) or (high is not None and value > high):
        bounds = f"≥ {low}" if high is None else f"from {low} to {high}"
        raise ArgumentError(
            argument,
            expected=f"a whole number {bounds}",
            got=repr(value),
            remedy=_remedy(argument, value, "int", remedy or f"Pass {argument}={low}, say."),
        )


def check_real(
    argument: str,
    value: Any,
    low: float = 0.0,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    remedy: str | None = None,
) -> None:
    """Refuse what is not a finite number between `low` and `high`; an end that is `open` does not count itself."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    above = number and (value > low if open_low else value >= low)
    if not above or not (value < high if open_high else value <= high):
        if (low, high) == (-math.inf, math.inf):
            expected = "a finite number"
        elif high == math.inf:
            expected = f"a finite number {'>' if open_low else '≥'} {low:g}"
        elif low == -math.inf:
            expected = f"a finite number {'<' if open_high else '≤'} {high:g}"
        else:
            expected = f"a number in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        example = min(high, 1.0) if low == -math.inf else low + 0.1 if high == math.inf else (low + high) / 2
        raise ArgumentError(
            argument,
            expected=expected,
            got=repr(value),
            remedy=_remedy(argument, value, "float", remedy or f"Pass {argument}={example:g}, say."),
        )


def check_share(argument: str, value: Any, *, remedy: str | None = None) -> None:
    """Refuse what is not a number between 0 and 1, both of which are none."""
    check_real(argument, value, 0.0, 1.0, open_low=True, open_high=True, remedy=remedy)


def check_flag(argument: str, value: object, *, remedy: str | None = None) -> None:
    """Refuse what is neither True nor False: a string such as ``"no"`` would count as True."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(
            argument, expected="True or False", got=repr(value), remedy=remedy or f"Pass {argument}=True, say."
        )


def check_choice(argument: str, value: Any, choices: Iterable[str]) -> None:
    """Refuse what is none of the names `choices`."""
    known = list(choices)
    if value not in known:
        raise ArgumentError(
            argument, expected=f"one of {', '.join(known)}", got=repr(value), remedy="Choose one of them."
        )


def check_type(argument: str, value: object, kind: type, *, remedy: str | None = None) -> None:
    """Refuse what is no instance of the class `kind`."""
    if not isinstance(value, kind):
        home = kind.__module__.split("._")[0]
        raise ArgumentTypeError(
            argument,
            expected=f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__} (of {home})",
            got=type(value).__name__,
            remedy=remedy or f"Pass an instance of {home}.{kind.__name__}.",
        )
