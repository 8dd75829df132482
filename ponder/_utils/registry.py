"""Names of plug-ins: registration, lookup, and the plain-JSON form of a hyper-parameter object."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module, metadata
from typing import Any, ClassVar, Generic, Self, TypeVar

from ponder.errors import ArgumentError, ArgumentTypeError, PonderError

__all__ = ["Plugin", "Registry"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_REGISTRY = "registry"  # key of the group of a nested plug-in that is of another registry than the outer one
_REGISTRIES: dict[str, Registry[Any]] = {}


class Registry(Generic[T]):
    """Maps names to the callables (classes or functions) that build plug-ins of one kind.

    A name comes from the decorator `register`, which may stand in a module that is imported when the name is asked for:
    one of `homes`, or an entry point of the group `group`.

    Args:
        kind: The kind of plug-in, for messages: ``"policy"``.
        group: Entry-point group that other packages use: ``"ponder.policies"``.
        homes: The modules that register names, by name.

    Example:
        >>> "quantile" in policies.names(), policies.get("quantile", q=0.3)
        (True, Quantile(q=0.3))
    """

    def __init__(self, kind: str, group: str, homes: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self.group = group
        self._homes = homes or {}
        self._factories: dict[str, Callable[..., T]] = {}
        _REGISTRIES[group] = self

    def register(self, name: str) -> Callable[[F], F]:
        """Return a decorator that gives `name` to a class or function; a name can be given once."""

        def give_name(factory: F) -> F:
            holder = self._factories.setdefault(name, factory)
            again = (holder.__module__, holder.__qualname__) == (factory.__module__, factory.__qualname__)
            if not again:
                raise ArgumentError(
                    "name",
                    expected=f"a {self.kind} name that is still free",
                    got=f"{name!r}, which names {holder!r}",
                    remedy="Register yours under another name.",
                )
            self._factories[name] = factory  # a class that is defined again, in a notebook, replaces the first
            return factory

        return give_name

    def names(self) -> list[str]:
        """Return all known names, sorted, without importing what they stand for."""
        return sorted({*self._factories, *self._homes, *_entry_points(self.group)})

    def find(self, name: str) -> Callable[..., T]:
        """Return the class or function called `name`."""
        if name not in self._factories and name in self._homes:
            import_module(self._homes[name])
        if name not in self._factories:
            if name not in _entry_points(self.group):
                raise ArgumentError(
                    self.kind,
                    expected=f"one of {', '.join(self.names())}",
                    got=repr(name),
                    remedy=f"Correct the name, or register a {self.kind} under it.",
                )
            self._factories.setdefault(name, _entry_points(self.group)[name].load())
        return self._factories[name]

    def get(self, name: str, **arguments: Any) -> T:
        """Build the plug-in called `name` with `arguments`."""
        factory = self.find(name)
        try:
            return factory(**arguments)
        except TypeError as error:
            if isinstance(error, PonderError):
                raise
            raise ArgumentTypeError(
                f"arguments of {self.kind} {name!r}",
                expected="those of its signature",
                got=f"{', '.join(arguments) or 'none'} ({error})",
                remedy=f"See help({factory.__module__}.{factory.__qualname__}).",
            ) from error

    def name_of(self, factory: type) -> str:
        """Return the name under which a class was registered."""
        for name, registered in self._factories.items():
            if (registered.__module__, registered.__qualname__) == (factory.__module__, factory.__qualname__):
                return name
        raise ArgumentError(
            self.kind,
            expected=f"a registered {self.kind}",
            got=repr(factory),
            remedy=f"Give the class a name, with the decorator register('a-name') of the {self.kind} registry.",
        )


class Plugin:
    """Mixin of the frozen dataclasses that live in a registry: they turn into plain JSON and back.

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
        encoded = {name: _encode(self.registry, name, value) for name, value in fields.items()}
        return {"name": self.registry.name_of(type(self)), **encoded}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Invert `to_dict`, for any member of the registry that `cls` belongs to."""
        return _decode(cls.registry, data)  # type: ignore[no-any-return]


@cache
def _entry_points(group: str) -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=group)}


def _encode(registry: Registry[Any], field: str, value: object) -> object:
    if isinstance(value, Plugin):
        other = {} if value.registry is registry else {_REGISTRY: value.registry.group}
        return {**value.to_dict(), **other}
    if isinstance(value, list | tuple):
        return [_encode(registry, field, item) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ArgumentTypeError(
        field,
        expected="a value that plain JSON can hold",
        got=type(value).__name__,
        remedy="Keep tensors and modules out of hyper-parameter objects.",
    )


def _decode(registry: Registry[Any], value: Any) -> Any:
    if isinstance(value, Mapping):
        if not isinstance(value.get("name"), str):
            raise ArgumentTypeError(
                "data",
                expected=f"a mapping with the {registry.kind}'s 'name'",
                got=repr(value),
                remedy="Pass what to_dict() returned.",
            )
        registry = _REGISTRIES[value.get(_REGISTRY, registry.group)]
        fields = {key: _decode(registry, item) for key, item in value.items() if key not in ("name", _REGISTRY)}
        return registry.get(value["name"], **fields)
    if isinstance(value, list | tuple):
        return tuple(_decode(registry, item) for item in value)
    return value
