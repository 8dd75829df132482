"""Executors by name; a new one is one more row of `_MODULES`."""

from __future__ import annotations

import importlib

from benchmarks.glue.sweeping.executors.base import Executor, Resources
from ponder.errors import ArgumentError

__all__ = ["get", "names"]

_MODULES = {
    "local": "benchmarks.glue.sweeping.executors.local",
    "ray": "benchmarks.glue.sweeping.executors.on_ray",
    "inline": "benchmarks.glue.sweeping.executors.inline",
}


def names() -> tuple[str, ...]:
    """Names of the executors."""
    return tuple(_MODULES)


def get(name: str, resources: Resources) -> Executor:
    """The executor of a name.

    Args:
        name: ``"local"``, ``"ray"`` or ``"inline"``.
        resources: What runs may use.
    """
    if name not in _MODULES:
        raise ArgumentError(
            "--executor", expected=f"one of {', '.join(_MODULES)}", got=repr(name), remedy="Choose one."
        )
    made: Executor = importlib.import_module(_MODULES[name]).make(resources)
    return made
