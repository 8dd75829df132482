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
    """Names of the callables (classes or functions) that build plug-ins of one kind.

    A name comes from the decorator `register`; from `register_places`, by which a package lists
    its own plug-ins without importing them; or from an entry point of the group `group`. The last
    two are imported when the plug-in is built.

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
        self._places: dict[str, metadata.EntryPoint] = {}

    def register(self, name: str) -> Callable[[F], F]:
        """Return a decorator that registers a class or function under a name, once."""

        def give_name(factory: F) -> F:
            holder = _place_of(factory)
            if name in self._factories:
                holder = _place_of(self._factories[name])
            elif name in self._places:
                holder = self._places[name].value
            if holder != _place_of(factory):
                raise ArgumentError(
                    "name",
                    expected=f"a {self.kind} name that is free",
                    got=f"{name!r}, which names {holder}",
                    remedy="Register yours under another name.",
                )
            # A class that is defined again, by a cell of a notebook, replaces the first.
            self._factories[name] = factory
            return factory

        return give_name

    def register_places(self, package: str, places: Mapping[str, str]) -> None:
        """Register plug-ins of a package by their names, each with its place `"module:name"`."""
        for name, place in places.items():
            point = metadata.EntryPoint(name, f"{package}.{place}", self.group)
            self._places[name] = point

    def names(self) -> list[str]:
        """Return all known names, sorted, without importing any plug-in."""
        return sorted({*self._factories, *self._places, *_entry_points(self.group)})

    def get(self, name: str, **arguments: Any) -> T:
        """Build the plug-in called `name` with `arguments`."""
        if name not in self._factories:
            place = self._places.get(name) or _entry_points(self.group).get(name)
            if place is None:
                raise ArgumentError(
                    self.kind,
                    expected=f"one of {', '.join(self.names())}",
                    got=repr(name),
                    remedy=f"Correct it, or register a {self.kind}.",
                )
            self._factories.setdefault(name, place.load())
        return self._factories[name](**arguments)

    def name_of(self, factory: type) -> str:
        """Return the name under which a class was registered."""
        place = _place_of(factory)
        for name, registered in self._factories.items():
            if _place_of(registered) == place:
                return name
        for name, listed in self._places.items():
            if listed.value == place:
                return name
        raise ArgumentError(
            self.kind,
            expected=f"a registered {self.kind}",
            got=repr(factory),
            remedy="Give the class a name, with the decorator register('a-name') "
            f"of the {self.kind} registry.",
        )


class Plugin:
    """Mixin of the frozen dataclasses in a registry: they are written to plain JSON and read back.

    Fields are plain JSON, plug-ins of the same registry, or dataclasses of plain JSON, which are
    read back as a dict.

    Example:
        >>> policies.Quantile(0.3).to_dict()
        {'name': 'quantile', 'q': 0.3}
        >>> policies.from_dict({"name": "quantile", "q": 0.3})
        Quantile(q=0.3)
    """

    registry: ClassVar[Registry[Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: the registered name under ``"name"``, and every field."""
        data = {"name": self.registry.name_of(type(self))}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if field.init:
                data[field.name] = _encode(getattr(self, field.name))
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Invert `to_dict`, for any plug-in of the registry of `cls`."""
        return _build(cls.registry, data)  # type: ignore[no-any-return]


def _place_of(factory: Callable[..., object]) -> str:
    """Return the module and the name under which a callable was defined."""
    return f"{factory.__module__}:{factory.__qualname__}"


@cache
def _entry_points(group: str) -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=group)}


def _encode(value: object) -> Any:
    if isinstance(value, Plugin):
        return value.to_dict()
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {name: _encode(item) for name, item in vars(value).items()}
    return value


def _build(registry: Registry[Any], data: Mapping[str, Any]) -> Any:
    """Return the plug-in that `Plugin.to_dict` wrote."""
    fields = {key: _decode(registry, item) for key, item in data.items() if key != "name"}
    return registry.get(data["name"], **fields)


def _decode(registry: Registry[Any], value: Any) -> Any:
    if isinstance(value, Mapping):
        if "name" in value:
            return _build(registry, value)
        return {key: _decode(registry, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_decode(registry, item) for item in value)
    return value
