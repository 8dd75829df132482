"""Checks of hyper-parameters: each raises an error that says what was expected, what came and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from ponder.errors import ArgumentError, ArgumentTypeError, PonderError

__all__ = ["check_choice", "check_int", "check_real", "check_share", "check_type", "library"]


def check_int(
    argument: str,
    value: Any,
    low: int | None = 1,
    high: int | None = None,
    *,
    remedy: str | None = None,
) -> None:
    """Accept whole numbers from `low` to `high`, None being no bound."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or (low is not None and value < low) or (high is not None and value > high):
        bounds = "" if low is None else f" ≥ {low}" if high is None else f" from {low} to {high}"
        remedy = remedy or f"Pass {argument}={low or 0}, say."
        raise ArgumentError(
            argument, expected=f"a whole number{bounds}", got=repr(value), remedy=remedy
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
    """Accept finite numbers between `low` and `high`; an `open` end is not accepted itself."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if (
        number
        and (value > low if open_low else value >= low)
        and (value < high if open_high else value <= high)
    ):
        return
    if math.isinf(high):
        expected, example = f"a finite number {'>' if open_low else '≥'} {low:g}", low + 0.1
    else:
        expected = (
            f"a number in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        )
        example = (low + high) / 2
    remedy = remedy or f"Pass {argument}={example:g}, say."
    raise ArgumentError(argument, expected=expected, got=repr(value), remedy=remedy)


def check_share(argument: str, value: Any, *, remedy: str | None = None) -> None:
    """Accept numbers strictly between 0 and 1."""
    check_real(argument, value, 0.0, 1.0, open_low=True, open_high=True, remedy=remedy)


def check_choice(argument: str, value: Any, choices: Iterable[str]) -> None:
    """Accept the names `choices`."""
    known = list(choices)
    if value not in known:
        expected = f"one of {', '.join(known)}"
        raise ArgumentError(
            argument, expected=expected, got=repr(value), remedy="Choose one of them."
        )


def check_type(argument: str, value: object, kind: type) -> None:
    """Accept instances of the class `kind`."""
    if not isinstance(value, kind):
        name = (
            kind.__qualname__
            if kind.__module__ == "builtins"
            else f"{kind.__module__}.{kind.__qualname__}"
        )
        got, remedy = f"{type(value).__name__} ({value!r:.80})", f"Pass an instance of {name}."
        raise ArgumentTypeError(argument, expected=f"an instance of {name}", got=got, remedy=remedy)


def library(module: str, use: str, extra: str | None = None) -> Any:
    """Import a module that need not be installed, or say what needs it, and what to install.

    Args:
        module: The module.
        use: What needs it, as the subject of a sentence.
        extra: The extra of this package that brings it; None if it is installed by its own name.
    """
    try:
        return import_module(module)
    except ImportError as error:
        wanted = module.partition(".")[0] if extra is None else f"ponder-torch[{extra}]"
        raise PonderError(f"{use} needs {module}: pip install '{wanted}'.") from error
