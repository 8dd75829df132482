"""Names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(package: str, places: Iterable[str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package.

    Args:
        package: Its `__name__`.
        places: The places of its names in it, `"module:name"`; `"module"` is a module itself.
    """
    homes = {place.rpartition(":")[2]: place.partition(":")[0] for place in places}

    def get_name(name: str) -> Any:
        """Import a name of the package, and keep it there."""
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        value: Any = import_module(f"{package}.{home}")
        if name != home:
            value = getattr(value, name)
        setattr(sys.modules[package], name, value)
        return value

    return get_name
