"""Plain JSON as dataclasses.

`from_plain` gives each field what its annotation says, or names the field that is damaged.

The annotations are the format. So a file is checked when it is read, and once. What annotations
cannot say, such as which numbers fit together, a class says in `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["from_plain"]

T = TypeVar("T")


def from_plain(kind: type[T], data: Any) -> T:
    """Return a dataclass from plain JSON.

    Arrays become tuples, and objects inside become dataclasses too.

    Args:
        kind: The class; fields that it gives a default may be missing.
        data: What JSON gave.

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
    own = dataclasses.fields(kind)  # type: ignore[arg-type]
    if unknown := data.keys() - {each.name for each in own}:
        raise ValueError(f"{min(unknown)}: unknown to a {kind.__name__}")
    values = dict[str, Any]()
    for each in own:
        if each.name in data:
            try:
                values[each.name] = _read(hints[each.name], data[each.name])
            except ValueError as error:
                raise ValueError(f"{each.name}: {error}") from None
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise ValueError(f"{each.name}: missing")
    return kind(**values)


def _read(hint: Any, value: Any) -> Any:
    """Return a value as an annotation has it."""
    is_object = dataclasses.is_dataclass(value) and isinstance(hint, type)
    if hint is Any or (is_object and isinstance(value, hint)):
        return value
    if dataclasses.is_dataclass(hint):
        return from_plain(hint, value)  # type: ignore[arg-type]
    origin = get_origin(hint)
    if origin is None:
        return _scalar(hint, value)
    return _READERS[origin](hint, value)


def _scalar(hint: Any, value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if hint is None or hint is types.NoneType:
        hint = types.NoneType
    if type(value) is not hint:
        raise _wrong(hint, value)
    return value


def _read_union(hint: Any, value: Any) -> Any:
    for each in get_args(hint):
        try:
            return _read(each, value)
        except ValueError as error:
            last = error
    raise last


def _read_literal(hint: Any, value: Any) -> Any:
    if value not in get_args(hint):
        raise ValueError(f"expected one of {', '.join(map(repr, get_args(hint)))}; got {value!r}")
    return value


def _read_sequence(hint: Any, value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise _wrong(hint, value)
    kinds = get_args(hint)
    if get_origin(hint) is tuple and kinds[-1] is not Ellipsis:
        if len(kinds) != len(value):
            raise _wrong(hint, value)
        return tuple(_read(kind, each) for kind, each in zip(kinds, value, strict=True))
    return tuple(_read(kinds[0], each) for each in value)


def _read_mapping(hint: Any, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(hint, value)
    of_values = get_args(hint)[1]
    return {str(name): _read(of_values, each) for name, each in value.items()}


_READERS: Mapping[Any, Callable[[Any, Any], Any]] = {
    Union: _read_union,
    types.UnionType: _read_union,
    Literal: _read_literal,
    Sequence: _read_sequence,
    tuple: _read_sequence,
    list: _read_sequence,
    Mapping: _read_mapping,
    dict: _read_mapping,
}


def _wrong(hint: Any, value: object) -> ValueError:
    name = str(hint)
    if get_origin(hint) is None:
        name = getattr(hint, "__name__", name)
    return ValueError(f"expected {name}; got {value!r:.40}")
