"""Rows that were used: short digests of those from which a folder was made.

They are the rows that taught, chose or certified; their digests are a file of the folder.

A check judges a promise by rows that are drawn as those that certified and were not among them. A
new log is that as a whole, the texts in it that were used before included, since traffic repeats
itself. Only rows that are *the same rows* are left out, and these show by the pattern of the
repeats (`ponder.statistics.repeats`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ponder._utils.files import reading
from ponder._utils.rows import Text, content_ids
from ponder._utils.seals import read_sealed, write_sealed
from ponder.errors import ArgumentError, CheckpointError
from ponder.statistics.repeats import fresh_rows, share_rows

__all__ = ["USED", "Used"]

USED = "used.json"
"""The file of a folder with the digests of the rows that made it."""
_FORMAT = "ponder-used-2"
Digests = NDArray[np.uint32]
_NONE: Digests = np.zeros(0, dtype=np.uint32)


@dataclass(frozen=True, eq=False)
class Used:
    """Digests of the texts of rows, 32 bits each, sorted.

    A text that was used in several rows is there as often.

    Args:
        rows: One for each row that taught, chose or certified.
        taught: Those of the rows from which heads or a student learned.

    Example:
        >>> from ponder.statistics.used import Used
        >>> log = [f"text {n % 90}" for n in range(100)]
        >>> used = Used.of(log)
        >>> int(used.fresh(["text 1", "new"]).sum())
        2
        >>> int(used.fresh([*log, *"abcdefghij" * 20]).sum())
        200
    """

    rows: Digests = field(default_factory=lambda: _NONE)
    taught: Digests = field(default_factory=lambda: _NONE)

    @classmethod
    def of(cls, texts: Sequence[Text], taught: Sequence[Text] = ()) -> Self:
        """Return the digests of all rows of a file, and of those that taught."""
        return cls(np.sort(_digests(texts)), np.sort(_digests(taught)))

    def __or__(self, other: Used) -> Used:
        """Return the rows of both; those of one file that both used are used once."""
        return Used(_joined(self.rows, other.rows), _joined(self.taught, other.taught))

    def __len__(self) -> int:
        return len(self.rows)

    def fresh(self, texts: Sequence[Text]) -> NDArray[np.bool_]:
        """Return which rows may judge the promise, `(rows,)` bool.

        These are rows of the same traffic that were not used. A new log is judged as a whole. Of a
        file that holds used rows, each text counts as often as it comes more than it was used, by
        `ponder.statistics.repeats.fresh_rows`.

        Raises:
            ArgumentError: Most rows are used ones: the file that made the promise cannot judge it.
        """
        fresh = _fresh(texts, self.rows)
        if 2 * int(fresh.sum()) < len(fresh):
            expected = "fresh texts"
            got = f"{len(fresh) - fresh.sum()} of {len(texts)} rows that taught, chose or certified"
            remedy = "Name a file of other rows: those that made a promise cannot judge it."
            raise ArgumentError("--texts", expected=expected, got=got, remedy=remedy)
        return fresh

    def have_taught(self, texts: Sequence[Text]) -> NDArray[np.bool_]:
        """Return which rows taught, `(rows,)` bool.

        Where only some of the rows with one text taught, the first ones are taken for them.
        """
        return ~_fresh(texts, self.taught)

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
            name: np.frombuffer(base64.b64decode(value, validate=True), dtype="<u4")
            for name, value in data.items()
        }
        return cls(**{name: array.astype(np.uint32) for name, array in arrays.items()})

    def write(self, folder: str | Path) -> None:
        """Write the digests into a folder."""
        write_sealed(Path(folder) / USED, _FORMAT, self.to_dict())

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read the digests of a folder; none if it has no such file.

        Raises:
            CheckpointError: The file is damaged, or was edited: rows that made the promise could
                judge it.
        """
        path = Path(folder) / USED
        if not path.is_file():
            return cls()
        sealed = read_sealed(path, _FORMAT, "list of used texts")
        if sealed.changed():
            raise CheckpointError(
                f"{path}: changed after it was written, so rows that made the promise could judge "
                "it. Make the folder again."
            )
        with reading(path, "list of used texts"):
            return cls.from_dict(sealed.settings)


def _digests(texts: Sequence[Text]) -> Digests:
    return (content_ids(texts) & 0xFFFFFFFF).astype(np.uint32)


def _fresh(texts: Sequence[Text], used: Digests) -> NDArray[np.bool_]:
    """Return which rows are not among those used, `(rows,)` bool."""
    fresh = np.zeros(len(texts), dtype=bool)
    fresh[fresh_rows(_digests(texts), used)] = True
    return fresh


def _joined(one: Digests, other: Digests) -> Digests:
    """Return the rows of two files; the larger number of each text if they share rows."""
    if not share_rows(one, other):
        return np.sort(np.concatenate([one, other]))
    texts, place = np.unique(np.concatenate([one, other]), return_inverse=True)
    in_one = np.bincount(place[: len(one)], minlength=len(texts))
    in_other = np.bincount(place[len(one) :], minlength=len(texts))
    return np.repeat(texts, np.maximum(in_one, in_other))
