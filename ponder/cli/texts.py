"""Texts from files: CSV, JSON lines, plain text (a line each), and Parquet where `datasets` is installed."""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

from ponder._utils.columns import fitted_columns
from ponder.errors import ArgumentError, DataError

__all__ = ["Texts", "read_texts", "read_texts_for"]

_LOOKED_AT = 200  # rows, to see what a column holds
_WORDS = 3
_USUAL = ("text", "sentence", "texts", "content")


@dataclass(frozen=True)
class Texts:
    """The texts of a file, in its order.

    Args:
        columns: Names of the one or two columns that were read.
        rows: One or two texts each.
        labels: What stands in the column of labels, one each; empty where none was read.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...] = ()

    @property
    def empty(self) -> int:
        """How many rows have no text at all."""
        return sum(not any(text.strip() for text in row) for row in self.rows)

    def without_empty(self) -> Texts:
        """The rows that have a text.

        Raises:
            DataError: None has.
        """
        kept = [place for place, row in enumerate(self.rows) if any(text.strip() for text in row)]
        if not kept:
            raise DataError("texts: expected at least one that is not empty; got none.")
        labels = tuple(self.labels[place] for place in kept) if self.labels else ()
        return Texts(self.columns, tuple(self.rows[place] for place in kept), labels)

    def labelled(self, encodings: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> list[Mapping[str, Any]]:
        """The encodings of these texts with their labels as numbers, where labels were read.

        Args:
            encodings: One for each text.
            names: Names of the classes; a label is a name, or a number.

        Raises:
            ArgumentError: A label is neither; or they could be both, where classes have numbers for names.
        """
        if not self.labels:
            return list(encodings)
        numbers = self._numbers({str(name): place for place, name in names.items()})
        return [{**row, "labels": numbers[label]} for row, label in zip(encodings, self.labels, strict=True)]

    def _numbers(self, by_name: Mapping[str, int]) -> Mapping[str, int]:
        """The class of each label. Where classes have numbers for names, all labels are names, or all are numbers."""
        by_number = {str(place): place for place in by_name.values()}
        either, told = {**by_number, **by_name}, dict.fromkeys(self.labels)
        shown = ", ".join(list(by_name)[:3])
        for label in told:
            if label not in either:
                raise ArgumentError(
                    "labels",
                    expected=f"names of the model's {len(by_name)} classes ({shown}, …), or their numbers",
                    got=repr(label),
                    remedy="Name the right column, or leave labels out: they are not needed.",
                )
        if all(by_number.get(label, either[label]) == either[label] for label in told):
            return either
        readings = [read for read in (by_name, by_number) if all(label in read for label in told)]
        if len(readings) != 1:
            raise ArgumentError(
                "labels",
                expected=f"labels that say which class they mean, where classes have numbers for names ({shown}, …)",
                got=f"{', '.join(list(told)[:3])}, which are names of some classes and numbers of others",
                remedy="Rename the classes in the model's config (id2label), or leave labels out: they are not needed.",
            )
        return readings[0]


def read_texts(
    path: Path, columns: Sequence[str] = (), labels: str | None = None, *, known: Sequence[str] = ()
) -> Texts:
    """Read one or two columns of a file, and that of labels.

    Args:
        path: `.csv`, `.tsv`, `.jsonl`, `.json`, `.parquet`; anything else is plain text, a text on each line.
        columns: Their names. Where none is given: the only column there is, or the only one called text or sentence,
            if no other holds texts too.
        labels: Name of the column of labels; None where none is read.
        known: Names that are taken where none is given and the file has them.

    Raises:
        DataError: No such file, not what its name says, or without rows.
        ArgumentError: It has no such column, or none that could be meant; or a column is named twice.
    """
    if len(columns) > 2:
        raise ArgumentError("columns", expected="one or two", got=", ".join(columns), remedy="A text or a pair.")
    given = [*columns, *(() if labels is None else (labels,))]
    if twice := [name for name in given if given.count(name) > 1]:
        raise ArgumentError(
            "column",
            expected="columns of their own for the two texts of a pair, and for labels",
            got=f"{twice[0]!r} twice",
            remedy="Name each column once.",
        )
    try:
        rows = _read(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected text in UTF-8; got other bytes at {error.start}. Save it as UTF-8."
        ) from error
    if not rows:
        raise DataError(f"{path}: expected at least one text; got none.")
    names = list(rows[0])
    chosen = tuple(columns) or (tuple(known) if known and set(known) <= set(names) else ())
    chosen = chosen or _meant(path, [name for name in names if name != labels], rows)
    for option, name in (*(("column", name) for name in chosen), *(() if labels is None else (("labels", labels),))):
        if name not in names:
            raise ArgumentError(
                option,
                expected=f"one of {', '.join(names)}",
                got=repr(name),
                remedy=f"Name a column of {path.name} by --{option}.",
            )
    made = []
    for place, row in enumerate(rows, start=1):
        texts = tuple(row.get(name) for name in chosen)
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{path}: expected text in {', '.join(chosen)} of row {place}; got {texts!r}.")
        if any(_half_of_a_pair(str(text)) for text in texts):
            raise DataError(
                f"{path}: row {place} holds half of a surrogate pair (a character that was cut), which is no text. "
                "Repair the row."
            )
        if labels is not None and row.get(labels) is None:
            raise DataError(f"{path}: row {place} has no {labels!r}. Label all rows, or leave labels out.")
        made.append(texts)
    told = () if labels is None else tuple(str(row[labels]) for row in rows)
    return Texts(chosen, tuple(made), told)  # type: ignore[arg-type]


def read_texts_for(folder: Path, path: Path, columns: Sequence[str] = (), labels: str | None = None) -> Texts:
    """The same for a folder that `exits` wrote, whose promise is about texts of one column, or about pairs.

    Args:
        folder: The model's folder.
        path: The file of texts.
        columns: Names of the columns; found in the file where empty.
        labels: Name of the column of labels; None where none is read.

    Raises:
        DataError: As for `read_texts`.
        ArgumentError: As for `read_texts`; single texts where the exits were fitted to pairs, or the other way; or the
            columns of the pairs in the other order.
    """
    known = fitted_columns(folder)
    found = read_texts(path, columns, labels, known=known)
    if known and len(known) != len(found.columns):
        raise ArgumentError(
            "column",
            expected=f"{len(known)} to a row, as in the texts that the exits were fitted to ({', '.join(known)})",
            got=f"{len(found.columns)} ({', '.join(found.columns)})",
            remedy=f"Name {'a column' if len(known) == 1 else f'{len(known)} columns'} by --column, once for each.",
        )
    if known == found.columns[::-1] != found.columns:
        raise ArgumentError(
            "column",
            expected=f"the order of the pairs that the exits were fitted to ({', '.join(known)})",
            got=", ".join(found.columns),
            remedy=f"Pass {' '.join(f'--column {name}' for name in known)}.",
        )
    return found


def _meant(path: Path, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    usual = [name for name in names if name.lower() in _USUAL]
    found = usual or names
    others = [name for name in names if name not in found and _holds_texts(name, rows[:_LOOKED_AT])]
    if len(found) == 1 and not others:
        return (found[0],)
    raise ArgumentError(
        "column",
        expected="the name of the column with the texts" + (", which may be one of a pair" if others else ""),
        got=f"none, and {path.name} has {', '.join(names)}",
        remedy="Pass --column NAME, twice for pairs.",
    )


def _holds_texts(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether most cells of a column have several words, as no label or number has."""
    words = [len(str(row.get(name, "")).split()) for row in rows if isinstance(row.get(name), str)]
    return bool(words) and sorted(words)[len(words) // 2] >= _WORDS


def _read(path: Path) -> list[Mapping[str, Any]]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        try:
            datasets: Any = importlib.import_module("datasets")
        except ImportError as error:
            raise DataError(f"{path}: reading Parquet needs datasets. Run: pip install datasets") from error
        try:
            return list(datasets.Dataset.from_parquet(str(path)))
        except Exception as error:  # of one of several libraries
            raise DataError(f"{path}: is no Parquet that can be read ({error}).") from error
    is_table = kind in (".csv", ".tsv")
    with path.open(encoding="utf-8-sig", newline="" if is_table else None) as file:  # a cell keeps its own line ends
        text = file.read()
    if is_table:
        with _fields_of_any_length(text):
            return _table(path, text, "\t" if kind == ".tsv" else ",")
    if kind in (".jsonl", ".ndjson"):
        return [_object(path, place, line) for place, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if kind == ".json":
        return _json(path, text)
    return [{"text": line} for line in text.removesuffix("\n").split("\n")] if text else []


def _json(path: Path, text: str) -> list[Mapping[str, Any]]:
    """The objects of one array, or of JSON lines with another ending."""
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{path}: its JSON is nested too deeply for a table of texts.") from error
    except ValueError:
        lines = [line for line in text.split("\n") if line.strip()]
        return [_object(path, place, line) for place, line in enumerate(lines, start=1)]
    rows = found if isinstance(found, list) else [found]
    return [{"text": row} if isinstance(row, str) else _checked(path, f"row {n}", row) for n, row in enumerate(rows, 1)]


@contextmanager
def _fields_of_any_length(text: str) -> Iterator[None]:
    """Read a long text as a text; the limit is one of the whole process, and others rely on it."""
    before = csv.field_size_limit()
    csv.field_size_limit(max(before, len(text) + 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _table(path: Path, text: str, delimiter: str) -> list[Mapping[str, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = list(dropwhile(_is_blank, reader))
    except csv.Error as error:
        if delimiter != "\t" or '""' in text:  # which stands for a mark in cells that are quoted
            raise DataError(f"{path}: line {reader.line_num} is no CSV ({error}).") from error
        lines = _unquoted(path, text)
    else:
        lines = _read_by_tabs(path, text, lines) if delimiter == "\t" else lines
    header, *rows = lines or [[""]]
    other = [mark for mark in ";\t" if len(header) == 1 and mark in header[0]]
    if other:
        raise DataError(
            f"{path}: expected columns that {delimiter!r} separates; got the header {header[0]!r}. "
            f"Save it with {delimiter!r} in the place of {other[0]!r}, or tables with tabs as .tsv."
        )
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise DataError(f"{path}: the header names {twice[0]!r} twice. Rename one of the columns, or remove it.")
    # A blank line is an empty text of a table of one column, and no row of another.
    rows = [row or [""] for row in rows] if len(header) == 1 else [row for row in rows if row]
    for place, row in enumerate(rows, start=1):
        if len(row) != len(header):
            marks = "tabs" if delimiter == "\t" else "commas"
            raise DataError(f"{path}: row {place} has more or fewer columns than the header. Quote texts with {marks}.")
    return [dict(zip(header, row, strict=True)) for row in rows]


def _unquoted(path: Path, text: str) -> list[list[str]]:
    """The rows of a table with tabs in which a quotation mark is a part of the text, as in those of GLUE."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    try:
        return list(dropwhile(_is_blank, reader))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is no row of a table ({error}).") from error


def _read_by_tabs(path: Path, text: str, lines: list[list[str]]) -> list[list[str]]:
    """Rows of a table with tabs, of which some quote their texts and some do not.

    Args:
        path: The file.
        text: All of it.
        lines: Its rows, with quotation marks around cells.
    """
    if not any("\n" in cell or "\r" in cell for row in lines for cell in row):
        return lines
    plain = _unquoted(path, text)
    columns = {len(row) for row in plain if row}
    # Where every line is a row of several columns, two marks stand at ends of cells by chance, and are parts of texts.
    return plain if len(columns) == 1 and columns != {1} else lines


def _is_blank(row: Sequence[str]) -> bool:
    return not row


def _half_of_a_pair(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _object(path: Path, place: int, line: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: line {place} is no JSON ({error}).") from error
    return _checked(path, f"line {place}", found)


def _checked(path: Path, where: str, found: object) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise DataError(f"{path}: {where}: expected a JSON object; got {type(found).__name__}.")
    return found
