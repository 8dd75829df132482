"""Reads one file of GLUE's tab-separated format, and says of a bad line which one it is and why."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.glue.tasks import GlueSplit, GlueTask
from ponder.errors import DataError

__all__ = ["read_split"]

_log = logging.getLogger(__name__)
_REMEDY = "Correct or remove the line, or fetch the file anew."


def read_split(task: GlueTask, split: GlueSplit, path: Path) -> dict[str, list[Any]]:
    """Read one file.

    Args:
        task: The task.
        split: Which of its splits the file holds.
        path: The file.

    Returns:
        The columns `idx`, `sentence1`, `sentence2` of a pair, and `label`, all of the same length.

    Raises:
        DataError: The file is empty, not UTF-8, lacks a column, or holds a line that cannot be read.
    """
    layout, rows = _open(task, split, path)
    allowed = task.malformed_lines if split.labelled else 0
    examples: dict[int, _Example] = {}
    skipped = 0
    for number, line in rows:
        where, fields = f"{path}, line {number}", line.split("\t")
        if len(fields) != layout.width:
            fault = f"{where}: expected {layout.width} columns; got {len(fields)}: {_shown(fields)}."
            skipped += 1
            if skipped > allowed:
                raise DataError(f"{fault} {_REMEDY}")
            _log.warning("%s It is left out.", fault)
            continue
        example = _parse(task, layout, fields, len(examples), where)
        if example.index in examples:
            raise DataError(f"{where}: expected an index of its own; got {example.index} again. {_REMEDY}")
        examples[example.index] = example
    if not examples:
        raise DataError(f"{path}: expected examples; got none. Fetch the file anew.")
    sentences = zip(*(example.sentences for example in examples.values()), strict=True)
    return {
        "idx": list(examples),
        **{f"sentence{number}": list(texts) for number, texts in enumerate(sentences, start=1)},
        "label": [example.label for example in examples.values()],
    }


@dataclass(frozen=True, slots=True)
class _Example:
    index: int
    sentences: tuple[str, ...]
    label: int | float


@dataclass(frozen=True)
class _Layout:
    """Where in a line the parts of an example stand, counted from 0."""

    width: int
    sentences: tuple[int, ...]
    label: int | None
    index: int | None


def _open(task: GlueTask, split: GlueSplit, path: Path) -> tuple[_Layout, Iterator[tuple[int, str]]]:
    lines = _lines(path)
    if split.columns is not None:
        return _layout(task, split, split.columns, path), iter(enumerate(lines, start=1))
    if not lines:
        raise DataError(f"{path}: expected a header line; got an empty file. Fetch the file anew.")
    header = tuple(name.strip() for name in lines[0].split("\t"))
    return _layout(task, split, header, path), iter(enumerate(lines[1:], start=2))


def _lines(path: Path) -> list[str]:
    """The lines without their ends; only newlines end a line, as other separators occur within sentences."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The offset counts from behind a byte-order mark, which holds no newline either way.
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise DataError(f"{path}, line {line}: expected UTF-8 text; got the byte {byte:#04x}. {_REMEDY}") from None
    return [line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")] if text.strip() else []


def _layout(task: GlueTask, split: GlueSplit, header: tuple[str, ...], path: Path) -> _Layout:
    wanted = (*task.columns, task.label_column if split.labelled else task.index_column)
    missing = [name for name in wanted if name not in header]
    if missing:
        raise DataError(
            f"{path}, line 1: expected a header with {', '.join(map(repr, wanted))}; got {_shown(header)}. "
            f"Fetch the {split.name} file of {task.name} in GLUE's own format."
        )
    return _Layout(
        width=len(header),
        sentences=tuple(header.index(name) for name in task.columns),
        label=header.index(task.label_column) if split.labelled else None,
        index=None if split.labelled else header.index(task.index_column),
    )


def _parse(task: GlueTask, layout: _Layout, fields: list[str], position: int, where: str) -> _Example:
    return _Example(
        index=position if layout.index is None else _index(fields[layout.index].strip(), where),
        sentences=tuple(fields[place].strip() for place in layout.sentences),
        label=-1 if layout.label is None else _label(task, fields[layout.label].strip(), where),
    )


def _index(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise DataError(f"{where}: expected an index, a whole number; got {text!r}. {_REMEDY}")
    return int(text)


def _label(task: GlueTask, text: str, where: str) -> int | float:
    if task.label_range is None:
        texts = task.label_texts or task.label_names
        if text not in texts:
            raise DataError(f"{where}: expected a label, one of {', '.join(texts)}; got {text!r}. {_REMEDY}")
        return texts.index(text)
    low, high = task.label_range
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise DataError(f"{where}: expected a score from {low:g} to {high:g}; got {text!r}. {_REMEDY}")
    return value


def _shown(fields: list[str] | tuple[str, ...]) -> str:
    text = " | ".join(fields)
    return repr(text if len(text) <= 80 else f"{text[:80]}…")
