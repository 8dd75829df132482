"""What figures are given: one run, or several of the same kind, one a seed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.recording import Recording
from ponder.plots.protocols import Run

__all__ = ["as_items", "as_runs", "same"]

T = TypeVar("T")


def as_items(argument: str, data: object, kind: type, name: str) -> list[Any]:
    """One item, or a sequence of one item a seed, as a list.

    Args:
        argument: The argument, for messages.
        data: What was passed.
        kind: What each item must be.
        name: What users call it.

    Raises:
        ArgumentError: There is none.
        ArgumentTypeError: Something of another kind.
    """
    items = [data] if isinstance(data, kind) else list(data) if isinstance(data, Sequence) else [data]
    if not items:
        raise ArgumentError(argument, expected="at least one", got="none", remedy="Pass one, or one a seed.")
    for item in items:
        if not isinstance(item, kind):
            raise ArgumentTypeError(
                argument,
                expected=f"a {name}, or a sequence of them, one a seed",
                got=type(item).__name__,
                remedy=f"Pass a ponder.{name}.",
            )
    return items


def as_runs(data: Run | Sequence[Run]) -> list[Run]:
    """Trajectories that have rows, all over the same number of steps."""
    items: list[Run] = as_items("trajectories", data, Recording, "Trajectory")
    same("trajectories", "number of steps", items, lambda item: item.num_steps)
    if not all(len(item) for item in items):
        raise ArgumentError("trajectories", expected="at least one row in each", got="none", remedy="Unroll some rows.")
    return items


def same(argument: str, what: str, items: Sequence[T], value: Callable[[T], Hashable]) -> None:
    """Refuse items that differ in something which a mean over them needs to be one."""
    values = list(dict.fromkeys(map(value, items)))
    if len(values) > 1:
        raise ArgumentError(
            argument,
            expected=f"the same {what} in all",
            got=" and ".join(map(str, values[:2])),
            remedy="Draw different ones by separate calls on the same ax.",
        )
