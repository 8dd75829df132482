"""Texts from files: CSV, TSV, JSON lines, Parquet, a text on each line, or standard input (`-`).

`read_texts` reads the rows (`read_rows`) and finds the columns with the texts and the labels.
"""

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

from ponder._utils.rows import Text, class_numbers
from ponder.errors import ArgumentError
from ponder.statistics.certificate import count

__all__ = ["Row", "Texts", "read_labels", "read_rows", "read_texts"]

Row: TypeAlias = Mapping[str, Any]
_HALF = re.compile("[\ud800-\udfff]")
"""Half a character: a surrogate by itself."""
_USUAL = ("text", "texts", "sentence", "content")
_LARGEST_CELL = 1 << 30  # characters


@dataclass(frozen=True)
class Texts:
    """The rows of a file.

    Args:
        columns: Names of the one or two columns of texts.
        rows: All columns of each row.
        label_column: Name of the column of labels; None without labels.
    """

    columns: tuple[str, ...]
    rows: list[Row]
    label_column: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def texts(self) -> list[Text]:
        """The texts, or pairs of texts."""
        if len(self.columns) == 1:
            [column] = self.columns
            return [row[column] for row in self.rows]
        first, second = self.columns
        return [(row[first], row[second]) for row in self.rows]

    @property
    def labels(self) -> list[object] | None:
        """The right classes as the file writes them; None without labels."""
        if self.label_column is None:
            return None
        return [row[self.label_column] for row in self.rows]

    def take(self, places: Iterable[int]) -> Texts:
        """Return some of the rows."""
        return replace(self, rows=[self.rows[place] for place in places])

    def without_empty(self) -> Texts:
        """Return the rows that hold a text, and report how many do not."""
        kept = [place for place, text in enumerate(self.texts) if "".join(text).strip()]
        empty = len(self) - len(kept)
        if empty:
            typer.echo(f"{count(empty, 'empty text')} left out.", err=True)
        return self.take(kept)

    def numbered(self, names: Sequence[str]) -> list[int] | None:
        """Return the labels, names or numbers of classes, as numbers; None without labels."""
        if self.label_column is None:
            return None
        return class_numbers([row[self.label_column] for row in self.rows], names)


def read_texts(
    path: Path,
    columns: Sequence[str] | None = None,
    labels: str | None = None,
    *,
    header: bool = True,
    known: Sequence[str] = (),
) -> Texts:
    """Read a file of texts: `.csv`, `.tsv`, `.jsonl`, `.parquet`, or a text on each line.

    Args:
        path: The file.
        columns: Names of the one or two columns of texts. By default the `known` ones if the file
            has them, else its only column, else the only one with a usual name, such as `text`.
        labels: Name of the column of labels.
        header: Whether a table begins with the names of its columns.
        known: The columns to which a model was fitted.

    Raises:
        ArgumentError: The file cannot be read, lacks a column, or has rows without a text or label.
    """
    rows = read_rows(path, header=header)
    if columns:
        chosen = tuple(columns)
    elif known and set(known) <= rows[0].keys():
        chosen = tuple(known)
    else:
        chosen = _guess_columns(rows, labels)
    if known and len(known) != len(chosen):
        fitted = ", ".join(known)
        raise ArgumentError(
            "--column",
            expected=f"{count(len(known), 'column')}, as the exits were fitted to ({fitted})",
            got=", ".join(chosen),
            remedy="Pass --column for each.",
        )
    for name in chosen:
        _check_column(path, rows, "--column", name, (str,))
    if labels:
        _check_column(path, rows, "--labels", labels, (str, int))
    return Texts(chosen, rows, labels)


def _check_column(
    path: Path, rows: Sequence[Row], option: str, name: str, kinds: tuple[type, ...]
) -> None:
    """Refuse a column that the file lacks, or that is empty in a row."""
    if name not in rows[0]:
        expected = f"one of {', '.join(rows[0])}"
        raise ArgumentError(option, expected=expected, got=name, remedy=f"See {path.name}.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get(name), kinds):
            expected = f"{name} in every row"
            raise _wrong("--texts", path, expected, f"none in row {number}", "Mend the file.")


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


def _guess_columns(rows: Sequence[Row], labels: str | None) -> tuple[str, ...]:
    """Return the only column of texts, by its name if there are several columns."""
    names = [name for name in rows[0] if name != labels]
    if len(names) != 1:
        names = [name for name in names if name.lower() in _USUAL]
    if len(names) != 1:
        expected = "the name of the column with the texts (twice for pairs)"
        got = f"none, of {', '.join(name for name in rows[0] if name != labels)}"
        raise ArgumentError("--column", expected=expected, got=got, remedy="Pass it.")
    return tuple(names)


def _read(path: Path, header: bool) -> list[Row]:
    """Return the rows of a file, by the format that its name shows."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return list(import_module("pandas").read_parquet(path).to_dict("records"))
    if str(path) == "-":
        text = sys.stdin.buffer.read().decode("utf-8-sig")
        kind = ".jsonl" if text.lstrip().startswith(("{", '"')) else ""
    else:
        text = path.read_bytes().decode("utf-8-sig")
    if "\0" in text:
        raise ValueError("bytes that are not text")
    if kind in (".csv", ".tsv"):
        return _table(path, text, header)
    lines: list[str] = []
    if text:
        lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if kind in (".jsonl", ".ndjson", ".json"):
        return _aligned([json.loads(line) for line in lines if line.strip()])
    return [{"text": line} for line in lines]


def _aligned(values: Sequence[object]) -> list[Row]:
    """Return JSON values as rows with the same columns in one order, and None for missing values.

    Half a character (a lone surrogate, of a text that was cut in UTF-16) becomes U+FFFD, as in
    browsers.
    """
    rows = [value if isinstance(value, dict) else {"text": value} for value in values]
    names: dict[str, None] = {}  # in the order in which they come
    for row in rows:
        names |= dict.fromkeys(row)
    halves = 0
    aligned: list[Row] = []
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
    """Return the rows of a table with commas or tabs.

    Raises:
        ValueError: Rows have different numbers of columns, two columns have one name, or the
            columns are separated by something else.
    """
    csv.field_size_limit(_LARGEST_CELL)
    if path.suffix.lower() == ".tsv":
        table = _read_tabs(text)
    else:
        table = _read_cells(text, csv.excel)
    if not table:
        return []
    _check_shape(table)
    if not header:
        names = _default_names(len(table[0]))
        return [dict(zip(names, row, strict=True)) for row in table]
    names, *rows = table
    if len(set(names)) < len(names):
        raise ValueError("two columns of one name")
    if len(names) == 1 and names[0].lower() not in _USUAL:
        note = f"Taken as the header of {path.name}: {names[0]!r}. If that is a text, pass "
        typer.echo(note + "--no-header.", err=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _check_shape(table: Sequence[Sequence[str]]) -> None:
    """Refuse a table without commas, or whose rows have different numbers of columns."""
    first = table[0]
    if len(first) == 1 and (";" in first[0] or "\t" in first[0]):
        raise ValueError(
            f"no comma in {first[0]!r}; save it with commas, or tables with tabs as .tsv"
        )
    for number, row in enumerate(table, start=1):
        if len(row) != len(first):
            raise ValueError(f"another number of columns in row {number}")


def _read_tabs(text: str) -> list[list[str]]:
    """Return the cells of a table with tabs.

    In such tables (those of GLUE, say) a quotation mark is mostly a part of the text. Therefore it
    delimits cells only if rows have different numbers of columns without it.
    """
    file = io.StringIO(text, newline="")
    plain = list(csv.reader(file, csv.excel_tab, quoting=csv.QUOTE_NONE))
    widths = {len(row) for row in plain if row}
    if len(widths) == 1:
        return _without_blank(plain)
    return _read_cells(text, csv.excel_tab)


def _read_cells(text: str, dialect: type[csv.Dialect]) -> list[list[str]]:
    """Return the cells of a table with quotation marks around cells."""
    reader = csv.reader(io.StringIO(text, newline=""), dialect, strict=True)
    return _without_blank(list(reader))


def _without_blank(table: list[list[str]]) -> list[list[str]]:
    """Return the rows without blank lines, which are empty texts in a table of one column."""
    if table and len(table[0]) == 1:
        return [row or [""] for row in table]
    return [row for row in table if row]


def _default_names(width: int) -> list[str]:
    """Return names of the columns of a table without a header."""
    if width == 1:
        return ["text"]
    return [f"column{number}" for number in range(1, width + 1)]


def _wrong(option: str, path: Path, expected: str, got: object, remedy: str) -> ArgumentError:
    """Return the error about a file."""
    return ArgumentError(option, expected=expected, got=f"{got} ({path})", remedy=remedy)


def read_labels(file: Path | None) -> list[str]:
    """Read the labels of a file, one a line."""
    if file is None:
        remedy = "Pass --labels FILE, with a label on each line."
        raise ArgumentError("--labels", expected="a file", got="none", remedy=remedy)
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]
