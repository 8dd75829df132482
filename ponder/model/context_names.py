"""Names of the context: arguments that neither the stem nor a step takes are refused."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from ponder.errors import ArgumentError
from ponder.model.steps import parameters_of

__all__ = ["check_context_names"]

_CALL_ARGUMENTS = ("labels", "policy", "row_ids", "policy_context", "num_steps")


def check_context_names(
    names: Collection[str], stem: nn.Module | None, steps: Sequence[nn.Module]
) -> None:
    """Refuse names that nothing reads, and names that look misspelt if any keyword is taken.

    Args:
        names: The names of the context.
        stem: The stem; that of a captured module has the names that the module takes.
        steps: The callables of the steps.
    """
    known: set[str] = set(getattr(stem, "argument_names", ()))
    takes_any = False
    if not known:
        parts = [part for part in (stem, *steps) if part is not None]
        parameters = [parameter for part in parts for parameter in parameters_of(part).values()]
        known = {parameter.name for parameter in parameters}
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    candidates = list(_CALL_ARGUMENTS)
    if not takes_any:
        candidates += known
    for name in set(names) - known:
        close = get_close_matches(name, candidates, n=1, cutoff=0.75)
        if close or not takes_any:
            raise _unknown_name(name, close)


def _unknown_name(name: str, close: list[Any]) -> ArgumentError:
    remedy = "Leave it out: nothing would read it."
    if close:
        remedy = f"Did you mean {close[0]!r}?"
    return ArgumentError(
        name,
        expected="an argument of the call, or a name that the stem or a step takes",
        got=f"{name!r}, which none of them names",
        remedy=remedy,
    )
