"""Names of the version before, which go on working for one version, with a warning that names the new one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["renamed", "renamed_attribute"]


def renamed(module: str, names: Mapping[str, Any]) -> Callable[[str], Any]:
    """The `__getattr__` of a module (PEP 562) in which things had other names.

    Args:
        module: Name of the module.
        names: What each old name stands for.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = names[name].__name__
        warnings.warn(f"{module}.{name} is called {module}.{new} now.", DeprecationWarning, stacklevel=2)
        return names[name]

    return get


def renamed_attribute(old: str, new: str) -> Any:
    """A property of the old name, for a class whose attribute has a new one."""

    def get(self: Any) -> Any:
        warnings.warn(f"{type(self).__name__}.{old} is called {new} now.", DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    return property(get, doc=f"The old name of `{new}`.")
