"""JSON files of results: atomic writing, reading, and a digest that reveals later edits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ponder._utils.files import replace_text
from ponder.errors import PonderError

__all__ = [
    "DataError",
    "digest",
    "is_intact",
    "read_json",
    "read_seeds",
    "with_digest",
    "write_json",
]


class DataError(PonderError, ValueError):
    """Data or a result are missing, or of another form than they should be."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds an object of JSON."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: expected a JSON file ({error}). Remove it, or make it anew."
        ) from error
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected an object of JSON; got a {type(data).__name__}.")
    return data


def read_seeds(
    folder: Path, form: str, name_of: Callable[[Mapping[str, Any]], str]
) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Return the results of a folder in files `*-s<seed>.json`, by name, each by seed.

    Args:
        folder: The folder.
        form: The format that each result has to name.
        name_of: Returns what a result is about.

    Raises:
        DataError: If a result is of another format, or was edited.
    """
    found: dict[str, Sequence[Mapping[str, Any]]] = {}
    for path in sorted(folder.glob("*-s*.json")):
        result = read_json(path)
        if result.get("format") != form or not is_intact(result):
            raise DataError(f"{path}: expected a result as it was written, of the format {form!r}.")
        name = name_of(result)
        found[name] = [*found.get(name, ()), result]
    return found


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write an object of JSON in one act."""
    replace_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def digest(fields: Mapping[str, Any]) -> str:
    """Return a digest of plain JSON values, ten hexadecimal digits, whatever the order of fields."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:10]


def with_digest(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same data with their digest.

    Example:
        >>> data = with_digest({"score": 0.5})
        >>> is_intact(data), is_intact({**data, "score": 0.9}), is_intact({"score": 0.5})
        (True, False, False)
    """
    return {**data, "digest": _digest_of_rest(data)}


def is_intact(data: Mapping[str, Any]) -> bool:
    """Return whether these data are what `with_digest` gave."""
    return data.get("digest") == _digest_of_rest(data)


def _digest_of_rest(data: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in data.items() if name != "digest"}
    return digest(json.loads(json.dumps(rest)))  # as a file gives it back
