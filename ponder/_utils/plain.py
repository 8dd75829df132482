"""Plain JSON as dataclasses.

`from_plain` gives each field the type of its annotation, or names the field that is damaged.

The annotations are the format. So a file is checked when it is read, and once. What annotations
cannot say, such as which numbers fit together, a class checks in `__post_init__`.

`_read` chooses a reader by the kind of the annotation: a dataclass, a scalar, or a generic type
(`_READERS`), whose parts are read in turn.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["from_plain"]

Hint: TypeAlias = object
"""An annotation: a class, or a form such as `tuple[int, ...]` or `str | None`."""
T = TypeVar("T")


def from_plain(kind: type[T], data: object) -> T:
    """Return a dataclass from plain JSON.

    Arrays become tuples, and objects inside become dataclasses too.

    Args:
        kind: The class; fields that it gives a default may be missing.
        data: The values, as `json.loads` returns them.

    Raises:
        ValueError: A field is missing, unknown or of another type.

    Example:
        >>> from dataclasses import dataclass
        >>> from ponder._utils.plain import from_plain
        >>> @dataclass
        ... class Span:
        ...     ends: tuple[int, int]
        >>> from_plain(Span, {"ends": [1, 2]})
        Span(ends=(1, 2))
        >>> from_plain(Span, {"ends": [1, "x"]})
        Traceback (most recent call last):
        ValueError: ends: expected int; got 'x'
    """
    if not isinstance(data, Mapping):
        raise _wrong(kind, data)
    hints = get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    unknown = data.keys() - {field.name for field in fields}
    if unknown:
        raise ValueError(f"{min(unknown)}: unknown to a {kind.__name__}")
    values: dict[str, Any] = {}
    for field in fields:
        if field.name in data:
            try:
                values[field.name] = _read(hints[field.name], data[field.name])
            except ValueError as error:
                raise ValueError(f"{field.name}: {error}") from None
        elif _is_required(field):
            raise ValueError(f"{field.name}: missing")
    return kind(**values)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _read(hint: Hint, value: object) -> object:
    """Return a value as an annotation has it."""
    is_object = dataclasses.is_dataclass(value) and isinstance(hint, type)
    if hint is Any or (is_object and isinstance(value, hint)):  # type: ignore[arg-type]
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_plain(hint, value)
    origin = get_origin(hint)
    if origin is None:
        return _scalar(hint, value)
    return _READERS[origin](hint, value)


def _scalar(hint: Hint, value: object) -> object:
    """Return a value of one class; integers are numbers, too, but no bool is."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)  # type: ignore[arg-type]
    if hint is None:
        hint = types.NoneType
    if type(value) is not hint:
        raise _wrong(hint, value)
    return value


def _read_union(hint: Hint, value: object) -> object:
    """Return a value by the first of several annotations that fits."""
    for each in get_args(hint):
        try:
            return _read(each, value)
        except ValueError as error:
            last = error
    raise last


def _read_literal(hint: Hint, value: object) -> object:
    """Return one of the values that an annotation lists."""
    if value not in get_args(hint):
        raise ValueError(f"expected one of {', '.join(map(repr, get_args(hint)))}; got {value!r}")
    return value


def _read_sequence(hint: Hint, value: object) -> object:
    """Return an array as a tuple, of a fixed length if the annotation names each part."""
    if not isinstance(value, list | tuple):
        raise _wrong(hint, value)
    kinds = get_args(hint)
    if get_origin(hint) is not tuple or kinds[-1] is Ellipsis:
        return tuple(_read(kinds[0], each) for each in value)
    if len(kinds) != len(value):
        raise _wrong(hint, value)
    return tuple(_read(kind, each) for kind, each in zip(kinds, value, strict=True))


def _read_mapping(hint: Hint, value: object) -> object:
    """Return an object as a dict with names as keys."""
    if not isinstance(value, Mapping):
        raise _wrong(hint, value)
    _, kind_of_values = get_args(hint)
    return {str(name): _read(kind_of_values, each) for name, each in value.items()}


_READERS: Mapping[object, Callable[[Hint, object], object]] = {
    Union: _read_union,
    types.UnionType: _read_union,
    Literal: _read_literal,
    Sequence: _read_sequence,
    tuple: _read_sequence,
    list: _read_sequence,
    Mapping: _read_mapping,
    dict: _read_mapping,
}
"""By the origin of an annotation, the function that reads a value of it."""


def _wrong(hint: Hint, value: object) -> ValueError:
    """Return the error for a value that does not fit."""
    name = str(hint)
    if get_origin(hint) is None:
        name = getattr(hint, "__name__", name)
    return ValueError(f"expected {name}; got {value!r:.40}")
