"""Names of plug-ins: registration, lookup, and the plain-JSON form of a hyper-parameter object."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from typing import Any, ClassVar, Generic, Self, TypeVar

from ponder.errors import ArgumentError

__all__ = ["Plugin", "Registry"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Maps names to the callables (classes or functions) that build plug-ins of one kind.

    A name comes from the decorator `register`, or from an entry point of the group `group`, which
    is imported when its name is asked for.

    Args:
        kind: The kind of plug-in, for messages: ``"policy"``.
        group: Entry-point group that other packages use: ``"ponder.policies"``.

    Example:
        >>> "quantile" in policies.names(), policies.get("quantile", q=0.3)
        (True, Quantile(q=0.3))
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._factories: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[F], F]:
        """Return a decorator that gives `name` to a class or function; a name can be given once."""

        def give_name(factory: F) -> F:
            holder = self._factories.setdefault(name, factory)
            again = (holder.__module__, holder.__qualname__) == (
                factory.__module__,
                factory.__qualname__,
            )
            if not again:
                got, remedy = (
                    f"{name!r}, which names {holder!r}",
                    "Register yours under another name.",
                )
                raise ArgumentError(
                    "name", expected=f"a {self.kind} name that is free", got=got, remedy=remedy
                )
            self._factories[name] = (
                factory  # a class that is defined again, in a notebook, replaces the first
            )
            return factory

        return give_name

    def names(self) -> list[str]:
        """Return all known names, sorted, without importing what they stand for."""
        return sorted({*self._factories, *_entry_points(self.group)})

    def get(self, name: str, **arguments: Any) -> T:
        """Build the plug-in called `name` with `arguments`."""
        if name not in self._factories:
            if name not in _entry_points(self.group):
                expected, remedy = (
                    f"one of {', '.join(self.names())}",
                    f"Correct it, or register a {self.kind}.",
                )
                raise ArgumentError(self.kind, expected=expected, got=repr(name), remedy=remedy)
            self._factories.setdefault(name, _entry_points(self.group)[name].load())
        return self._factories[name](**arguments)

    def name_of(self, factory: type) -> str:
        """Return the name under which a class was registered."""
        for name, registered in self._factories.items():
            if (registered.__module__, registered.__qualname__) == (
                factory.__module__,
                factory.__qualname__,
            ):
                return name
        remedy = f"Give the class a name, with the decorator register('a-name') of the {self.kind} registry."
        raise ArgumentError(
            self.kind, expected=f"a registered {self.kind}", got=repr(factory), remedy=remedy
        )


class Plugin:
    """Mixin of the frozen dataclasses that live in a registry: they turn into plain JSON and back.

    Fields are plain JSON, or plug-ins of the same registry.

    Example:
        >>> policies.Quantile(0.3).to_dict()
        {'name': 'quantile', 'q': 0.3}
        >>> policies.from_dict({"name": "quantile", "q": 0.3})
        Quantile(q=0.3)
    """

    registry: ClassVar[Registry[Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: the registered name under ``"name"``, and every field."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}  # type: ignore[arg-type]
        return {
            "name": self.registry.name_of(type(self)),
            **{name: _encode(value) for name, value in fields.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Invert `to_dict`, for any member of the registry that `cls` belongs to."""
        return _decode(cls.registry, data)  # type: ignore[no-any-return]


@cache
def _entry_points(group: str) -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=group)}


def _encode(value: object) -> object:
    if isinstance(value, Plugin):
        return value.to_dict()
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def _decode(registry: Registry[Any], value: Any) -> Any:
    if isinstance(value, Mapping):
        fields = {key: _decode(registry, item) for key, item in value.items() if key != "name"}
        return registry.get(value["name"], **fields)
    if isinstance(value, list | tuple):
        return tuple(_decode(registry, item) for item in value)
    return value
