"""Texts from files: CSV, TSV, JSON lines, Parquet (by pandas), a text on each line, or the standard input (`-`)."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import typer

from ponder._utils.rows import class_numbers
from ponder.calibration.statement import count
from ponder.errors import ArgumentError

__all__ = ["Row", "Texts", "count", "read_rows", "read_texts"]

Row: TypeAlias = Mapping[str, Any]
_HALF = re.compile("[\ud800-\udfff]")
_USUAL = ("text", "texts", "sentence", "content")


@dataclass(frozen=True)
class Texts:
    """The rows of a file."""

    columns: tuple[str, ...]  # names of the one or two columns of texts
    rows: list[Row]  # all columns of each row
    label_column: str | None = None  # None where no labels are read

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def texts(self) -> list[Any]:
        """The texts, or pairs of texts."""
        one = self.columns[0]
        return [
            row[one] if len(self.columns) == 1 else tuple(row[name] for name in self.columns)
            for row in self.rows
        ]

    @property
    def labels(self) -> list[Any] | None:
        """The right classes as they stand in the file; None if none are read."""
        if self.label_column is None:
            return None
        return [row[self.label_column] for row in self.rows]

    def take(self, places: Iterable[int]) -> Texts:
        """Return some of the rows."""
        return replace(self, rows=[self.rows[place] for place in places])

    def without_empty(self) -> Texts:
        """Return the rows that hold a text, and say how many do not."""
        kept = [
            n
            for n, text in enumerate(self.texts)
            if (text if isinstance(text, str) else "".join(text)).strip()
        ]
        if len(kept) < len(self):
            typer.echo(f"{count(len(self) - len(kept), 'empty text')} left out.", err=True)
        return self.take(kept)

    def numbered(self, names: Sequence[str]) -> list[int] | None:
        """Return labels, which are names of the classes or their numbers, as numbers; None where none are read."""
        if self.label_column is None:
            return None
        return class_numbers([row[self.label_column] for row in self.rows], names)


def read_texts(
    path: Path,
    columns: Sequence[str] = (),
    labels: str | None = None,
    *,
    header: bool = True,
    known: Sequence[str] = (),
) -> Texts:
    """Read a file of texts: `.csv`, `.tsv`, `.jsonl` or `.parquet`; anything else has a text on each line.

    Where no column of texts is named, those to which a model is `known` to be fitted are read if
    the file has them, the only column there is, or the only one with a usual name, such as `text`.

    Raises:
        ArgumentError: The file cannot be read as such, or has no such column.
    """
    rows = read_rows(path, header=header)
    names = list(rows[0])
    chosen = tuple(columns) or (
        tuple(known) if known and set(known) <= set(names) else _guessed(rows, labels)
    )
    if known and len(known) != len(chosen):
        expected = (
            f"{count(len(known), 'column')}, as the exits were fitted to ({', '.join(known)})"
        )
        raise ArgumentError(
            "--column", expected=expected, got=", ".join(chosen), remedy="Pass --column for each."
        )
    read: list[tuple[str, str, Any]] = [("--column", name, str) for name in chosen]
    read += [("--labels", labels, str | int)] if labels else []
    for option, name, kind in read:
        if name not in names:
            raise ArgumentError(
                option, expected=f"one of {', '.join(names)}", got=name, remedy=f"See {path.name}."
            )
        absent = next(
            (n for n, row in enumerate(rows, 1) if not isinstance(row.get(name), kind)), None
        )
        if absent is not None:
            raise _wrong(
                "--texts", path, f"{name} in every row", f"none in row {absent}", "Mend the file."
            )
    return Texts(chosen, rows, labels)


def read_rows(path: Path, option: str = "--texts", *, header: bool = True) -> list[Row]:
    """Read the rows of a file, all columns of each; `option` names it in errors."""
    try:
        rows = _read(path, header)
    except OSError as error:
        raise _wrong(
            option, path, "a file that can be read", error.strerror, "Name another."
        ) from error
    except UnicodeDecodeError as error:
        raise _wrong(option, path, "text in UTF-8", "other bytes", "Save it as UTF-8.") from error
    except (ValueError, csv.Error) as error:
        raise _wrong(
            option, path, f"a {path.suffix[1:].upper() or 'text'} file", error, "Mend it there."
        ) from error
    if not rows:
        raise _wrong(option, path, "at least one text", "none", "Name a file with texts in it.")
    return rows


def _guessed(rows: Sequence[Row], labels: str | None) -> tuple[str, ...]:
    names = [name for name in rows[0] if name != labels]
    found = names if len(names) == 1 else [name for name in names if name.lower() in _USUAL]
    if len(found) != 1:
        expected = "the name of the column with the texts (twice for pairs)"
        raise ArgumentError(
            "--column", expected=expected, got=f"none, of {', '.join(names)}", remedy="Pass it."
        )
    return tuple(found)


def _read(path: Path, header: bool) -> list[Row]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        return list(import_module("pandas").read_parquet(path).to_dict("records"))
    if str(path) == "-":
        text = sys.stdin.buffer.read().decode("utf-8-sig")
        kind = ".jsonl" if text.lstrip().startswith(("{", '"')) else ""
    else:
        text = path.read_bytes().decode("utf-8-sig")
    if "\0" in text:
        raise ValueError("bytes that are no text")
    if kind in (".csv", ".tsv"):
        return _table(path, text, header)
    if text:
        lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    else:
        lines = []
    if kind in (".jsonl", ".ndjson", ".json"):
        return _aligned([json.loads(line) for line in lines if line.strip()])
    return [{"text": line} for line in lines]


def _aligned(values: Sequence[Any]) -> list[Row]:
    """Return JSON values as rows with the same columns in one order; None stands in a column that a row lacks.

    Half a character (a lone surrogate, of a text that was cut in UTF-16) becomes U+FFFD, as in
    browsers.
    """
    rows = [value if isinstance(value, dict) else {"text": value} for value in values]
    names = dict.fromkeys(name for row in rows for name in row)
    halves = 0
    aligned = list[Row]()
    for row in rows:
        cells = {name: row.get(name) for name in names}
        for name, cell in cells.items():
            if isinstance(cell, str) and not cell.isascii():
                whole = _HALF.sub("\ufffd", cell)
                halves += whole != cell
                cells[name] = whole
        aligned.append(cells)
    if halves:
        typer.echo(f"{count(halves, 'text')} with half a character, read as \ufffd.", err=True)
    return aligned


def _table(path: Path, text: str, header: bool) -> list[Row]:
    csv.field_size_limit(1 << 30)
    tabs = path.suffix.lower() == ".tsv"
    if tabs:
        plain = list(
            csv.reader(io.StringIO(text, newline=""), csv.excel_tab, quoting=csv.QUOTE_NONE)
        )
    else:
        plain = []
    # In tables with tabs, as those of GLUE, a quotation mark is mostly a part of the text.
    even = len({len(row) for row in plain if row}) == 1
    kind = csv.excel_tab if tabs else csv.excel
    table = plain if even else list(csv.reader(io.StringIO(text, newline=""), kind, strict=True))
    width = len(table[0]) if table else 0
    table = [row or [""] for row in table] if width == 1 else [row for row in table if row]
    if not table:
        return []
    if width == 1 and any(mark in table[0][0] for mark in ";\t"):
        raise ValueError(
            f"no comma in {table[0][0]!r}; save it with commas, or tables with tabs as .tsv"
        )
    if header:
        names = table[0]
    elif width == 1:
        names = ["text"]
    else:
        names = [f"column{n}" for n in range(1, width + 1)]
    if header and width == 1 and names[0].lower() not in _USUAL:
        typer.echo(
            f"Taken as the header of {path.name}: {names[0]!r}. If that is a text, pass --no-header.",
            err=True,
        )
    wrong = next((place for place, row in enumerate(table, start=1) if len(row) != width), None)
    if wrong or len(set(names)) < width:
        raise ValueError(
            f"another number of columns in row {wrong}" if wrong else "two columns of one name"
        )
    return [dict(zip(names, row, strict=True)) for row in table[1 if header else 0 :]]


def _wrong(option: str, path: Path, expected: str, got: object, remedy: str) -> ArgumentError:
    return ArgumentError(option, expected=expected, got=f"{got} ({path})", remedy=remedy)
