"""Files of answers: CSV, JSON lines or Parquet, or JSON lines on the standard output (`-`).

A file is written row by row, and gone on with after a stop: whole rows are kept, a last one that
was cut is not.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from ponder.errors import ArgumentError

__all__ = ["AnswerFile", "answer_file"]

_LONGEST_FIELD = 1 << 30


class AnswerFile(ABC):
    """A file of rows with answers.

    Args:
        path: The file.
        names: Names of all columns, the answers' last.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        self.names = list(names)

    def resume(self, given: Sequence[Mapping[str, Any]]) -> int:
        """Cut the file behind its last whole row, and return the number of rows.

        Answers to other rows are refused.
        """
        whole = self._whole_rows()
        columns = self.names[: len(given[0])]
        kept = [{name: row.get(name) for name in columns} for row in whole]
        if kept != [self._cells(row) for row in given[: len(whole)]]:
            expected = "answers to these texts, to go on with"
            got = f"others, in {self.path}"
            raise ArgumentError("--out", expected=expected, got=got, remedy="Name another.")
        if whole:
            part = self.path.with_name(f"{self.path.name}.part")
            with part.open("w", encoding="utf-8", newline="") as file:
                file.write(self._text(whole, begins=True))
            os.replace(part, self.path)
        return len(whole)

    def append(self, rows: Iterable[Mapping[str, Any]], *, begins: bool) -> None:
        """Write rows behind those that are there, flushed to the disk."""
        with self.path.open("w" if begins else "a", encoding="utf-8", newline="") as file:
            file.write(self._text(rows, begins=begins))
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Write rows that were held back; none are by default."""
        return

    def _content(self) -> str:
        """Return the file as text; half a character at its end, from a stop, is left out."""
        return self.path.read_bytes().decode("utf-8", errors="ignore")

    def _cells(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the cells of a row of the texts' file as they are read again."""
        return dict(row)

    @abstractmethod
    def _whole_rows(self) -> list[dict[str, Any]]: ...

    @abstractmethod
    def _text(self, rows: Iterable[Mapping[str, Any]], *, begins: bool) -> str: ...


class _Csv(AnswerFile):
    def _whole_rows(self) -> list[dict[str, Any]]:
        csv.field_size_limit(_LONGEST_FIELD)
        text = self._content()
        rows = list(csv.reader(io.StringIO(text, newline="")))
        torn = bool(rows) and (not text.endswith("\n") or len(rows[-1]) < len(self.names))
        whole = rows[: len(rows) - torn]
        if whole and whole[0] != self.names:
            return [{}]
        return [dict(zip(self.names, row, strict=False)) for row in whole[1:]]

    def _cells(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _cell(value) for name, value in row.items()}

    def _text(self, rows: Iterable[Mapping[str, Any]], *, begins: bool) -> str:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        if begins:
            writer.writerow(self.names)
        writer.writerows([_cell(row[name]) for name in self.names] for row in rows)
        return text.getvalue()


class _JsonLines(AnswerFile):
    def _whole_rows(self) -> list[dict[str, Any]]:
        lines = self._content().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def _cells(self, row: Mapping[str, Any]) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps(dict(row), default=str))
        return plain

    def _text(self, rows: Iterable[Mapping[str, Any]], *, begins: bool) -> str:
        lines = (json.dumps(_plain(row), ensure_ascii=False, default=str) for row in rows)
        return "".join(f"{line}\n" for line in lines)


class _StandardOutput(_JsonLines):
    def append(self, rows: Iterable[Mapping[str, Any]], *, begins: bool) -> None:
        typer.echo(self._text(rows, begins=begins), nl=False)


class _Parquet(AnswerFile):
    def __init__(self, path: Path, names: Sequence[str]) -> None:
        super().__init__(path, names)
        self._rows = list[Mapping[str, Any]]()

    def append(self, rows: Iterable[Mapping[str, Any]], *, begins: bool) -> None:
        self._rows += [_plain(row) for row in rows]

    def finish(self) -> None:
        table = import_module("pandas").DataFrame(self._rows, columns=self.names)
        table.to_parquet(self.path, index=False)

    def _whole_rows(self) -> list[dict[str, Any]]:
        expected = "a CSV or JSON lines file to go on with"
        remedy = "Name another file, or answers.csv."
        raise ArgumentError("--resume", expected=expected, got="a Parquet file", remedy=remedy)

    def _text(self, rows: Iterable[Mapping[str, Any]], *, begins: bool) -> str:
        raise NotImplementedError


_KINDS: dict[str, type[AnswerFile]] = {
    "-": _StandardOutput,
    ".csv": _Csv,
    ".jsonl": _JsonLines,
    ".ndjson": _JsonLines,
    ".parquet": _Parquet,
}


def answer_file(path: Path, names: Sequence[str]) -> AnswerFile:
    """Return the file of answers for a path, by its suffix."""
    kind = "-" if str(path) == "-" else path.suffix.lower()
    if kind not in _KINDS:
        expected = "a file that ends with .csv, .jsonl or .parquet, or - for the standard output"
        raise ArgumentError("--out", expected=expected, got=str(path), remedy="Name such a file.")
    return _KINDS[kind](path, names)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without NaN, which JSON has not."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in row.items()
    }


def _cell(value: Any) -> str:
    """Return a value as it is written in a table: nothing for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value if isinstance(value, str) else json.dumps(value, default=str)
