"""Files of answers: CSV, JSON lines or Parquet by their suffix, or standard output for `-`.

Rows are appended as they come. After an interruption `resume` keeps the whole rows, and drops a
last row that was cut.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import typer

from ponder.cli.texts import Row
from ponder.errors import ArgumentError

__all__ = ["AnswerFile", "answer_file", "names_of_answers"]

Cells: TypeAlias = dict[str, Any]
"""One row as it is written, by the names of the columns."""
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

    def resume(self, given: Sequence[Row]) -> int:
        """Cut the file after its last whole row, and return the number of rows.

        Args:
            given: The rows of the texts' file, in order.

        Raises:
            ArgumentError: The file has answers to other rows.
        """
        whole = self._whole_rows()
        columns = self.names[: len(given[0])]
        answered = [{name: row.get(name) for name in columns} for row in whole]
        if answered != [self._cells(row) for row in given[: len(whole)]]:
            raise ArgumentError(
                "--out",
                expected="answers to these texts, to continue",
                got=f"others, in {self.path}",
                remedy="Name another.",
            )
        if whole:
            part = self.path.with_name(f"{self.path.name}.part")
            with part.open("w", encoding="utf-8", newline="") as file:
                file.write(self._text(whole, begins=True))
            os.replace(part, self.path)
        return len(whole)

    def append(self, rows: Iterable[Row], *, begins: bool) -> None:
        """Append rows, and flush them to the disk; if the file `begins`, write it anew."""
        mode = "w" if begins else "a"
        with self.path.open(mode, encoding="utf-8", newline="") as file:
            file.write(self._text(rows, begins=begins))
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Write rows that `append` only collected, as a format without appending needs."""
        return

    def _content(self) -> str:
        """Return the file as text, without a last character that was cut."""
        return self.path.read_bytes().decode("utf-8", errors="ignore")

    def _cells(self, row: Row) -> Cells:
        """Return a row of the texts' file as it is read back from the file of answers."""
        return dict(row)

    @abstractmethod
    def _whole_rows(self) -> list[Cells]: ...

    @abstractmethod
    def _text(self, rows: Iterable[Row], *, begins: bool) -> str: ...


class _Csv(AnswerFile):
    def _whole_rows(self) -> list[Cells]:
        csv.field_size_limit(_LONGEST_FIELD)
        text = self._content()
        rows = list(csv.reader(io.StringIO(text, newline="")))
        if rows and (not text.endswith("\n") or len(rows[-1]) < len(self.names)):
            rows.pop()  # a row that was cut
        if rows and rows[0] != self.names:
            return [{}]  # a row that is equal to no other
        return [dict(zip(self.names, row, strict=False)) for row in rows[1:]]

    def _cells(self, row: Row) -> Cells:
        return {name: _cell(value) for name, value in row.items()}

    def _text(self, rows: Iterable[Row], *, begins: bool) -> str:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        if begins:
            writer.writerow(self.names)
        writer.writerows([_cell(row[name]) for name in self.names] for row in rows)
        return text.getvalue()


class _JsonLines(AnswerFile):
    def _whole_rows(self) -> list[Cells]:
        lines = self._content().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def _cells(self, row: Row) -> Cells:
        plain: Cells = json.loads(json.dumps(dict(row), default=str))
        return plain

    def _text(self, rows: Iterable[Row], *, begins: bool) -> str:
        lines = (json.dumps(_plain(row), ensure_ascii=False, default=str) for row in rows)
        return "".join(f"{line}\n" for line in lines)


class _StandardOutput(_JsonLines):
    def append(self, rows: Iterable[Row], *, begins: bool) -> None:
        typer.echo(self._text(rows, begins=begins), nl=False)


class _Parquet(AnswerFile):
    def __init__(self, path: Path, names: Sequence[str]) -> None:
        super().__init__(path, names)
        self._rows = list[Row]()

    def append(self, rows: Iterable[Row], *, begins: bool) -> None:
        self._rows += [_plain(row) for row in rows]

    def finish(self) -> None:
        table = import_module("pandas").DataFrame(self._rows, columns=self.names)
        table.to_parquet(self.path, index=False)

    def _whole_rows(self) -> list[Cells]:
        raise ArgumentError(
            "--resume",
            expected="a CSV or JSON lines file to continue",
            got="a Parquet file",
            remedy="Name another file, or answers.csv.",
        )

    def _text(self, rows: Iterable[Row], *, begins: bool) -> str:
        raise NotImplementedError


_KINDS: dict[str, type[AnswerFile]] = {
    "-": _StandardOutput,
    ".csv": _Csv,
    ".jsonl": _JsonLines,
    ".ndjson": _JsonLines,
    ".parquet": _Parquet,
}


def names_of_answers(answers: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return the columns of answers: their names, unless the texts have columns of these names.

    Example:
        >>> from ponder.cli.answers import names_of_answers
        >>> names_of_answers(["label", "exit_step"], ["text", "label"])
        ['predicted_label', 'exit_step']
    """
    return [f"predicted_{name}" if name in columns else name for name in answers]


def answer_file(path: Path, names: Sequence[str]) -> AnswerFile:
    """Return the file of answers for a path, by its suffix."""
    kind = "-" if str(path) == "-" else path.suffix.lower()
    if kind not in _KINDS:
        raise ArgumentError(
            "--out",
            expected="a file that ends with .csv, .jsonl or .parquet, or - for the standard output",
            got=str(path),
            remedy="Name such a file.",
        )
    return _KINDS[kind](path, names)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _plain(row: Row) -> Cells:
    """Return a row with None for NaN, which JSON lacks."""
    plain = dict(row)
    for name, value in row.items():
        if _is_nan(value):
            plain[name] = None
    return plain


def _cell(value: object) -> str:
    """Return a value as a cell of a table: empty for None and NaN."""
    if value is None or _is_nan(value):
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str)
