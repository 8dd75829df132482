"""Rows of a file with an answer, its confidence and a reference: of `certify` and `check`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from ponder.cli.texts import Row, read_rows
from ponder.errors import ArgumentError

__all__ = ["AnswerRows"]


@dataclass(frozen=True)
class AnswerRows:
    """Rows with an answer, its confidence and a reference.

    Args:
        rows: All columns of each row.
        columns: Names of the columns of the `answer`, its `confidence` and the `reference`.
    """

    rows: Sequence[Row]
    columns: Mapping[str, str]

    @classmethod
    def read(cls, path: Path, columns: Mapping[str, str]) -> Self:
        """Read a file; refuse one that lacks a column."""
        rows = read_rows(path, "ANSWERS")
        missing = [name for name in columns.values() if name not in rows[0]]
        if missing:
            raise ArgumentError(
                "ANSWERS",
                expected=f"rows with the columns {', '.join(columns.values())}",
                got=f"no column {missing[0]!r}",
                remedy="Name the columns: --answer, --confidence-column, --reference.",
            )
        return cls(rows, columns)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def answers(self) -> list[Any]:
        """The answers."""
        return [row[self.columns["answer"]] for row in self.rows]

    @property
    def confidences(self) -> list[float]:
        """The confidences of the answers."""
        try:
            return [float(row[self.columns["confidence"]]) for row in self.rows]
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                "confidences", expected="numbers", got=str(error), remedy="Mend the column."
            ) from error

    @property
    def references(self) -> list[Any]:
        """The answers of the reference."""
        return [row[self.columns["reference"]] for row in self.rows]

    @property
    def keys(self) -> list[str]:
        """All columns of each row as one text, which identifies the row."""
        return [json.dumps(dict(row), sort_keys=True, default=str) for row in self.rows]

    def take(self, places: Iterable[int]) -> Self:
        """Return some of the rows."""
        return replace(self, rows=[self.rows[place] for place in places])
