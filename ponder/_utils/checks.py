"""Checks of arguments: each raises an `ArgumentError` that says what was expected."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType
from typing import TypeGuard

from ponder.errors import ArgumentError, ArgumentTypeError, PonderError

__all__ = ["check_choice", "check_int", "check_real", "check_share", "check_type", "library"]


def check_int(
    argument: str,
    value: object,
    low: int | None = 1,
    high: int | None = None,
    *,
    remedy: str | None = None,
) -> None:
    """Accept whole numbers from `low` to `high`; None sets no bound."""
    if _is_whole(value) and (low is None or value >= low) and (high is None or value <= high):
        return
    bounds = ""
    if low is not None and high is None:
        bounds = f" ≥ {low}"
    elif low is not None:
        bounds = f" from {low} to {high}"
    raise ArgumentError(
        argument,
        expected=f"a whole number{bounds}",
        got=repr(value),
        remedy=remedy or f"Pass {argument}={low or 0}, say.",
    )


def check_real(
    argument: str,
    value: object,
    low: float = 0.0,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    remedy: str | None = None,
) -> None:
    """Accept finite numbers from `low` to `high`; `open_low` and `open_high` exclude the ends."""
    if _is_finite_number(value):
        above = value > low if open_low else value >= low
        below = value < high if open_high else value <= high
        if above and below:
            return
    if math.isinf(high):
        relation = ">" if open_low else "≥"
        expected = f"a finite number {relation} {low:g}"
        example = low + 0.1
    else:
        left = "(" if open_low else "["
        right = ")" if open_high else "]"
        expected = f"a number in {left}{low:g}, {high:g}{right}"
        example = (low + high) / 2
    raise ArgumentError(
        argument,
        expected=expected,
        got=repr(value),
        remedy=remedy or f"Pass {argument}={example:g}, say.",
    )


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)  # a bool is an int, too


def _is_finite_number(value: object) -> TypeGuard[float]:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def check_share(argument: str, value: object, *, remedy: str | None = None) -> None:
    """Accept numbers strictly between 0 and 1."""
    check_real(argument, value, 0.0, 1.0, open_low=True, open_high=True, remedy=remedy)


def check_choice(argument: str, value: object, choices: Iterable[str]) -> None:
    """Accept the names `choices`."""
    known = list(choices)
    if value not in known:
        raise ArgumentError(
            argument,
            expected=f"one of {', '.join(known)}",
            got=repr(value),
            remedy="Choose one of them.",
        )


def check_type(argument: str, value: object, kind: type) -> None:
    """Accept instances of the class `kind`."""
    if isinstance(value, kind):
        return
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    raise ArgumentTypeError(
        argument,
        expected=f"an instance of {name}",
        got=f"{type(value).__name__} ({value!r:.80})",
        remedy=f"Pass an instance of {name}.",
    )


def library(module: str, use: str, extra: str | None = None) -> ModuleType:
    """Import an optional dependency; the error says what needs it, and how to install it.

    Args:
        module: The module.
        use: What needs it, as the subject of a sentence.
        extra: The extra of this package that installs it; None to name the module's own package.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = f"ponder-torch[{extra}]"
        if extra is None:
            package = module.partition(".")[0]
        raise PonderError(f"{use} needs {module}: pip install '{package}'.") from error
