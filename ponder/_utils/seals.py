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

from ponder.errors import CheckpointError

__all__ = ["changed_parts", "digest_of_file", "sealed"]

_FIELD = "digests"
_SETTINGS = "settings"
_UNSEALED = ("format", "transformers_version", "evaluations")
"""Settings that decide no answer."""
_OF_CALLS = ("padding", "truncation")
"""Settings of a tokenizer's file that each call overwrites."""


def sealed(data: Mapping[str, object], files: Mapping[str, str]) -> dict[str, object]:
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
    of_settings = _digest_of({**data, _FIELD: dict(files)})
    return {**data, _FIELD: {**files, _SETTINGS: of_settings}}


def changed_parts(data: Mapping[str, object], locate: Callable[[str], Path | None]) -> list[str]:
    """Return the names of the parts that have changed since they were sealed.

    Args:
        data: The settings that `sealed` returned, as they were read.
        locate: A function from the name of a file to its path; None if it is missing.
    """
    digests = data.get(_FIELD)
    files: dict[str, object] = {}
    if isinstance(digests, Mapping):
        files.update(digests)
    of_settings = files.pop(_SETTINGS, None)
    changed = [name for name, digest in files.items() if _digest_at(locate(name)) != digest]
    if _digest_of({**data, _FIELD: files}) != of_settings:
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
    """Return the digest of a file; None if it is missing."""
    if path is None or not path.is_file():
        return None
    return digest_of_file(path)


def _digest_of(data: object) -> str:
    """Return the SHA-256 of JSON data, without fields that decide no answer."""
    if isinstance(data, Mapping):
        data = {name: value for name, value in data.items() if name not in _UNSEALED}
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
