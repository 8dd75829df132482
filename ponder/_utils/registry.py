"""Names for plug-ins: registration, lookup, and the plain-JSON form of a hyper-parameter object."""

from __future__ import annotations

import dataclasses
import inspect
import re
import reprlib
import sys
import warnings
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from importlib import metadata
from typing import Any, ClassVar, Generic, Self, TypeVar

from ponder.errors import ArgumentError, ArgumentTypeError, PonderError

__all__ = ["Plugin", "Registry"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_NAME = re.compile(r"[a-z0-9]+([-_.][a-z0-9]+)*")
_REGISTRY = "registry"  # where the group of a part is written that is of another registry than what it is a part of
_REGISTRIES: dict[str, Registry[Any]] = {}
_GOOD_NAME = "lower-case letters and digits joined by single '-', '_' or '.'"


class Registry(Generic[T]):
    """Maps names to the callables (classes or functions) that build plug-ins of one kind.

    A name comes from the decorator `register` or from an entry point of the group `group`. Entry points are
    imported when their name is asked for and not before, so a broken package breaks nothing but its own name. A name
    that is taken stays with its owner.

    Args:
        kind: What is registered, for messages, for example ``"policy"``.
        group: Entry-point group that other packages use, for example ``"ponder.policies"``.

    Example:
        >>> "quantile" in policies.names(), policies.get("quantile", q=0.3)
        (True, Quantile(q=0.3))
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self.base: type | None = None
        """What all of them are; `Plugin` says so of the class that holds the registry."""
        self._factories: dict[str, Callable[..., T]] = {}
        _REGISTRIES.setdefault(group, self)

    def register(self, name: str) -> Callable[[F], F]:
        """Return a decorator that gives `name` to a class or function; a name can be given once.

        The same class, defined again (a notebook cell that is run twice), takes the place of its first definition.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ArgumentError(
                "name",
                expected=_GOOD_NAME,
                got=repr(name),
                remedy=f"Choose a name such as 'my-{self.kind}'.",
            )

        def give_name(factory: F) -> F:
            if self.base is not None and isinstance(factory, type) and not issubclass(factory, self.base):
                raise ArgumentTypeError(
                    name,
                    expected=f"a subclass of {self.base.__name__}, under a name of the {self.kind} registry",
                    got=f"{factory.__module__}.{factory.__qualname__}",
                    remedy=f"Register it where it belongs: {self.group} is for each {self.kind}.",
                )
            holder = self._factories.setdefault(name, factory)
            if holder is not factory and _place(factory) is not None and _place(holder) == _place(factory):
                self._factories[name] = factory
            elif holder is not factory:
                raise ArgumentError(
                    "name",
                    expected=f"a {self.kind} name that is still free",
                    got=f"{name!r}, which names {holder!r}",
                    remedy="Register yours under another name.",
                )
            return factory

        return give_name

    def names(self) -> list[str]:
        """All known names, sorted; entry points are listed without importing them.

        Warns of entry points whose name is taken or cannot be used.
        """
        for name, points in self._entry_points().items():
            if fault := self._fault(name, points):
                warnings.warn(fault, stacklevel=2)
        return self._names()

    def find(self, name: str) -> Callable[..., T]:
        """The callable behind `name`; unknown names are answered with the known ones."""
        if name not in self._factories:
            self._load(name, self._entry_points().get(name, []))
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
                expected=_signature(factory),
                got=reprlib.repr(arguments),
                remedy=" ".join(filter(None, (f"({error})", self._fault(name, self._entry_points().get(name, []))))),
            ) from error

    def name_of(self, factory: object) -> str:
        """The name under which a class was registered, or that an entry point gives it."""
        for name, registered in self._factories.items():
            if registered is factory:
                return name
        for name, registered in self._factories.items():
            if _place(factory) is not None and _place(registered) == _place(factory):
                return name  # an instance of an earlier definition keeps its name, too
        for name, points in self._entry_points().items():
            if any(_imported(point) is factory for point in points):
                self._load(name, points)
                return name
        raise ArgumentError(
            self.kind,
            expected=f"a registered {self.kind}",
            got=repr(factory),
            remedy=f"Give the class a name first, with the decorator register('a-name') of the {self.kind} registry.",
        )

    def _names(self) -> list[str]:
        return sorted({*self._factories, *filter(_NAME.fullmatch, self._entry_points())})

    def _entry_points(self) -> dict[str, list[metadata.EntryPoint]]:
        found: dict[str, list[metadata.EntryPoint]] = {}
        for point in _entry_points_on(tuple(sys.path), self.group):
            found.setdefault(point.name, []).append(point)
        return found

    def _fault(self, name: str, points: list[metadata.EntryPoint]) -> str | None:
        """Why the name of an entry point does not lead to it, or None."""
        offers = " and ".join(f"the entry point {point.value!r}{_owner(point)}" for point in sorted(points))
        if points and not _NAME.fullmatch(name):
            return f"{offers} names a {self.kind} {name!r}, which is no name: it takes {_GOOD_NAME}. Rename it."
        owner = self._factories.get(name)
        if owner is not None and any(_imported(point) is not owner for point in points):
            return f"{offers} offers a {self.kind} {name!r}, a name that {owner!r} has. It is ignored: rename it."
        if owner is None and len({point.value for point in points}) > 1:
            return f"{offers} offer a {self.kind} {name!r} each. Remove a package, or rename one."
        return None

    def _load(self, name: str, points: list[metadata.EntryPoint]) -> None:
        if not points:
            raise ArgumentError(
                self.kind,
                expected=f"one of {', '.join(self._names())}",
                got=repr(name),
                remedy=f"Correct the name, or register a {self.kind} under it.",
            )
        if fault := self._fault(name, points):
            raise PonderError(fault)
        try:
            factory = points[0].load()
        except Exception as error:
            raise PonderError(
                f"the {self.kind} {name!r} comes from the entry point {points[0].value!r}{_owner(points[0])}, which "
                f"cannot be imported: {type(error).__name__}: {error}. Repair or remove that package."
            ) from error
        if name not in self._factories:
            self.register(name)(factory)


def _place(factory: object) -> tuple[str, str] | None:
    """Where a class or function is defined; None where that does not tell it from others, as inside a function."""
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or "<" in name:
        return None
    return module, name


@cache
def _entry_points_on(path: tuple[str, ...], group: str) -> tuple[metadata.EntryPoint, ...]:
    """The entry points of a group, read once for a path: those of all distributions take a tenth of a second."""
    return tuple(metadata.entry_points(group=group))


def _owner(point: metadata.EntryPoint) -> str:
    return "" if point.dist is None else f" of the package {point.dist.name!r}"


def _imported(point: metadata.EntryPoint) -> object:
    """What an entry point names, where its module has been imported; None otherwise."""
    if not point.pattern.match(point.value):
        return None
    found: object = sys.modules.get(point.module)
    for attribute in filter(None, point.attr.split(".")):
        found = getattr(found, attribute, None)
    return found


class Plugin:
    """Mixin of the frozen dataclasses that live in a registry: they turn into plain JSON and back.

    Example:
        >>> policies.Quantile(0.3).to_dict()
        {'name': 'quantile', 'q': 0.3}
        >>> policies.from_dict({"name": "quantile", "q": 0.3})
        Quantile(q=0.3)
    """

    registry: ClassVar[Registry[Any]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "registry" in vars(cls) and cls.registry.base is None:
            cls.registry.base = cls

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: the registered name under ``"name"``, and every field that the class is made of."""
        name = self.registry.name_of(type(self))
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}  # type: ignore[arg-type]
        if "name" in own:
            raise ArgumentError(
                f"{type(self).__name__}.name",
                expected="fields of other names, since 'name' is where the registered name is written",
                got="a field 'name'",
                remedy="Rename the field.",
            )
        return {"name": name, **{k: _encode(self.registry, k, v) for k, v in own.items()}}

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the constructor from the fields that `to_dict` gave."""
        return {key: _decode(cls.registry, value) for key, value in fields.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`, for any member of the registry that `cls` belongs to."""
        built = _build(cls.registry, data)
        if not isinstance(built, cls):
            raise ArgumentTypeError(
                "data", expected=cls.__name__, got=type(built).__name__, remedy="Call from_dict of its base."
            )
        return built


def _encode(registry: Registry[Any], field: str, value: object) -> object:
    if isinstance(value, Plugin):
        other = {} if value.registry is registry else {_REGISTRY: value.registry.group}
        return {**value.to_dict(), **other}
    if isinstance(value, list | tuple):
        return [_encode(registry, field, item) for item in value]
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, Enum)):
        return value
    raise ArgumentTypeError(
        field,
        expected="a value that plain JSON can hold",
        got=type(value).__name__,
        remedy="Keep tensors, modules and members of an Enum, which would come back as plain values, out of "
        "hyper-parameter objects.",
    )


def _build(registry: Registry[Any], data: object) -> Any:
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        raise ArgumentTypeError(
            "data",
            expected=f"a mapping with the {registry.kind}'s 'name'",
            got=repr(data),
            remedy="Pass what to_dict() returned.",
        )
    fields = {key: value for key, value in data.items() if key not in ("name", _REGISTRY)}
    if _REGISTRY in data:
        registry = _registry_of(data[_REGISTRY])
    factory = registry.find(data["name"])
    if isinstance(factory, type) and issubclass(factory, Plugin):
        return registry.get(data["name"], **factory.decode(fields))
    return registry.get(data["name"], **{key: _decode(registry, value) for key, value in fields.items()})


def _registry_of(group: object) -> Registry[Any]:
    if not isinstance(group, str) or group not in _REGISTRIES:
        raise ArgumentError(
            "data",
            expected=f"a part of {', '.join(sorted(_REGISTRIES))}",
            got=repr(group),
            remedy="Import the package that it comes from.",
        )
    return _REGISTRIES[group]


def _decode(registry: Registry[Any], value: object) -> object:
    if isinstance(value, Mapping):
        return _build(registry, value)
    if isinstance(value, list):
        return tuple(_decode(registry, item) for item in value)
    return value


def _signature(factory: Callable[..., Any]) -> str:
    if dataclasses.is_dataclass(factory):
        return "fields " + (", ".join(f.name for f in dataclasses.fields(factory)) or "(none)")
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return "the parameters of " + getattr(factory, "__name__", repr(factory))
    return "parameters " + (", ".join(parameters) or "(none)")
