"""A digest of plain JSON, and files that carry their own, by which a later edit is seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ponder.errors import DataError

__all__ = ["check_copies", "digest", "is_intact", "own_seed", "with_checksum"]


def digest(fields: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits that stand for plain JSON values, whatever the order of their fields."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:10]


def with_checksum(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same data with its digest.

    Example:
        >>> data = with_checksum({"score": 0.5})
        >>> is_intact(data), is_intact({**data, "score": 0.9}), is_intact({"score": 0.5})
        (True, False, False)
    """
    return {**data, "digest": _of_the_rest(data)}


def is_intact(data: Mapping[str, Any]) -> bool:
    """Whether these data are what `with_checksum` gave."""
    return data.get("digest") == _of_the_rest(data)


def _of_the_rest(data: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in data.items() if name != "digest"}
    return digest(json.loads(json.dumps(rest)))  # as a file gives it back


def own_seed(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The result, where the name of its file is that of its seed.

    Raises:
        DataError: It is another's: a copy of one seed would count as two.
    """
    if not path.stem.endswith(f"-s{result['seed']}"):
        raise DataError(f"{path}: expected the result of the seed that its name tells; got that of {result['seed']}.")
    return result


def check_copies(found: Iterable[tuple[Path | None, Mapping[str, Any]]]) -> None:
    """Refuse results that are equal but for their seeds: no two runs take the same time, to the last digit.

    Args:
        found: Results with the files that they were read from.

    Raises:
        DataError: One is a copy of another, edited to be of another seed: it would count as two.
    """
    known: dict[str, Path | None] = {}
    for path, result in found:
        rest = {name: value for name, value in result.items() if name not in ("digest", "seed", "environment")}
        if "config" in rest:
            rest["config"] = {**rest["config"], "seed": None}
        one = known.setdefault(digest(rest), path)
        if one is not path:
            raise DataError(f"{path}: expected a run of its own; it is {one} but for the seed. Remove the copy.")
