"""Seals: digests of the parts of a folder, kept with its promise.

The promise is dropped if a part has changed.

The file is JSON. Its own settings are a part, with the digests of all others in them, so that a
threshold that is edited is seen as weights are that were exchanged. A seal is not a signature:
anyone who can write the folder can seal it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ponder.errors import CheckpointError

__all__ = ["changed_parts", "digest_of_file", "sealed"]

_FIELD = "digests"
_SETTINGS = "settings"
_UNSEALED = ("format", "transformers_version", "evaluations")  # what decides no answer
_OF_CALLS = ("padding", "truncation")  # that each call of a tokenizer sets


def sealed(data: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """Return settings with the digests of the parts of their folder, and of themselves.

    Args:
        data: The settings, in plain JSON.
        files: Digests of the other parts, by the name of the file.

    Example:
        >>> from ponder._utils.seals import changed_parts, sealed
        >>> data = sealed({"threshold": 0.9}, {})
        >>> changed_parts(data, {}.get), changed_parts({**data, "threshold": 0.5}, {}.get)
        ([], ['settings'])
    """
    with_files = {**data, _FIELD: dict(files)}
    return {**data, _FIELD: {**files, _SETTINGS: _digest_of(with_files)}}


def changed_parts(data: Mapping[str, Any], locate: Callable[[str], Path | None]) -> list[str]:
    """Return which parts are not those that were sealed.

    Args:
        data: What `sealed` gave, as it was read.
        locate: A function from the name of a file to its path; None if it is missing.
    """
    kept = data.get(_FIELD)
    files: dict[str, Any] = {}
    if isinstance(kept, Mapping):
        files.update(kept)
    settings = files.pop(_SETTINGS, None)
    changed = [name for name, digest in files.items() if _digest_at(locate(name)) != digest]
    if _digest_of({**data, _FIELD: files}) != settings:
        changed.append(_SETTINGS)
    return changed


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file; of a JSON file, that of its contents, not of its layout."""
    if path.suffix != ".json":
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: no JSON ({error}).") from error
    if isinstance(data, dict):
        data = {name: value for name, value in data.items() if name not in _OF_CALLS}
    return _digest_of(data)


def _digest_at(path: Path | None) -> str | None:
    if path is None or not path.is_file():
        return None
    return digest_of_file(path)


def _digest_of(data: Any) -> str:
    if isinstance(data, Mapping):
        data = {name: value for name, value in data.items() if name not in _UNSEALED}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
