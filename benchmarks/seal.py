"""A digest of plain JSON, and files that carry their own, by which a later edit is seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["digest", "intact", "seal"]


def digest(fields: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits that stand for plain JSON values, whatever the order of their fields."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:10]


def seal(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same with its digest.

    Example:
        >>> intact(seal({"score": 0.5})), intact({**seal({"score": 0.5}), "score": 0.9}), intact({"score": 0.5})
        (True, False, False)
    """
    return {**data, "digest": _of_the_rest(data)}


def intact(data: Mapping[str, Any]) -> bool:
    """Whether these are what `seal` gave."""
    return data.get("digest") == _of_the_rest(data)


def _of_the_rest(data: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in data.items() if name != "digest"}
    return digest(json.loads(json.dumps(rest)))  # as a file gives it back
