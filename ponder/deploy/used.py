"""Texts that were used: short digests of those that taught, chose and certified, kept with the folder that they made.

A check of the promise leaves a used text out, since it is the same row again. But a text that
recurs among the used rows is traffic that repeats itself, and its fresh rows count.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ponder._utils.files import read_json, write_json
from ponder._utils.rows import content_ids
from ponder.errors import ArgumentError

__all__ = ["USED", "Used"]

USED = "used.json"
"""The file of a folder with the digests of the texts that made it."""
_FORMAT = "ponder-used-1"
Digests = NDArray[np.uint32]
_NONE: Digests = np.zeros(0, dtype=np.uint32)


@dataclass(frozen=True, eq=False)
class Used:
    """Digests of texts, 32 bits each, distinct and sorted; one of 4 billion fresh texts is taken for a used one.

    Args:
        once: Texts that were used in one row.
        repeated: Texts that were used in several rows.
        taught: Those of both from which heads or a student learned.

    Example:
        >>> from ponder.deploy.used import Used
        >>> used = Used.of(["yes", "no", "yes", "why"])
        >>> used.fresh(["yes", "no", "when", "who"])
        array([ True, False,  True,  True])
    """

    once: Digests = field(default_factory=lambda: _NONE)
    repeated: Digests = field(default_factory=lambda: _NONE)
    taught: Digests = field(default_factory=lambda: _NONE)

    @classmethod
    def of(cls, texts: Sequence[Any], taught: Sequence[Any] = ()) -> Self:
        """Return the digests of all texts of a file, and of those that taught."""
        digests, counts = np.unique(_digests(texts), return_counts=True)
        return cls(digests[counts == 1], digests[counts > 1], np.unique(_digests(taught)))

    def __or__(self, other: Used) -> Used:
        """Return the texts of both; one that both used in a row of one file was used once."""
        repeated = np.union1d(self.repeated, other.repeated)
        once = np.setdiff1d(np.union1d(self.once, other.once), repeated)
        return Used(once, repeated, np.union1d(self.taught, other.taught))

    def __len__(self) -> int:
        return len(self.once) + len(self.repeated)

    def fresh(self, texts: Sequence[Any]) -> NDArray[np.bool_]:
        """Return which rows may judge the promise, `(rows,)` bool.

        Raises:
            ArgumentError: Most rows are used ones: the file that made the promise cannot judge it.
        """
        digests = _digests(texts)
        again = np.isin(digests, self.once)
        new = ~again & ~np.isin(digests, self.repeated)
        if again.sum() > new.sum():
            expected = "fresh texts"
            got = f"{again.sum()} of {len(texts)} texts that taught, chose or certified"
            remedy = "Name a file of other texts: those that made a promise cannot judge it."
            raise ArgumentError("--texts", expected=expected, got=got, remedy=remedy)
        fresh: NDArray[np.bool_] = ~again
        return fresh

    def have_taught(self, texts: Sequence[Any]) -> NDArray[np.bool_]:
        """Return which rows taught, `(rows,)` bool; those of a text that was used in several rows are traffic."""
        digests = _digests(texts)
        taught: NDArray[np.bool_] = np.isin(digests, self.taught) & ~np.isin(digests, self.repeated)
        return taught

    def to_dict(self) -> dict[str, str]:
        """Return the digests as text."""
        return {
            name: base64.b64encode(value.astype("<u4").tobytes()).decode()
            for name, value in vars(self).items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, str]) -> Self:
        """Return what `to_dict` gave."""
        arrays = {
            name: np.frombuffer(base64.b64decode(value), dtype="<u4").astype(np.uint32)
            for name, value in data.items()
        }
        return cls(**arrays)

    def write(self, folder: str | Path) -> None:
        """Write the digests into a folder."""
        write_json(Path(folder) / USED, _FORMAT, self.to_dict())

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read the digests of a folder; none if it has no such file."""
        path = Path(folder) / USED
        return cls.from_dict(read_json(path, _FORMAT, "used texts")) if path.is_file() else cls()


def _digests(texts: Sequence[Any]) -> Digests:
    return (content_ids(texts) & 0xFFFFFFFF).astype(np.uint32)
