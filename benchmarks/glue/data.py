"""GLUE's data behind one interface, from a folder or from the hub.

Both sources give the same splits, columns and labels. GLUE's own files have quirks that are read as they are meant: a
byte-order mark, quotes that are part of the text, files without a header, lines without a final newline, blanks at the
ends of a sentence. Labels that GLUE keeps to itself are -1. A line with too few or too many columns is an error that
names file and line, except in the labelled splits of QQP, whose official dump has a few: they are left out, and named
in the log.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict

from benchmarks.examples import MissingDataError, features_of, read_text
from benchmarks.tasks import Task
from ponder.errors import DataError

__all__ = ["GlueSplit", "GlueTask"]

_log = logging.getLogger(__name__)
_HUB = "nyu-mll/glue"
_REMEDY = "Correct or remove the line, or fetch the file anew."


@dataclass(frozen=True)
class GlueSplit:
    """One split of a task; `columns` are those of a file that has no header line."""

    name: str
    columns: tuple[str, ...] | None = None
    stem: str = ""

    @property
    def file(self) -> str:
        """File name within the task's folder."""
        return f"{self.stem or self.name}.tsv"

    @property
    def hub(self) -> str:
        """Name of the split on the hub."""
        return self.name.replace("dev", "validation")

    @property
    def labelled(self) -> bool:
        """Whether the labels are public; GLUE keeps those of the test splits."""
        return not self.name.startswith("test")


_SPLITS = tuple(map(GlueSplit, ("train", "dev", "test")))


@dataclass(frozen=True, kw_only=True)
class GlueTask(Task):
    """One task of GLUE: beside its labels and metrics, its files.

    Args:
        hub_name: Name of the configuration on the hub.
        columns: The one or two columns of a file that hold the sentences.
        label_column: The column of a file that holds the label.
        label_texts: How a file writes each class, in the order of `label_names`; the names themselves if empty.
        hub_columns: The columns that hold the sentences on the hub; as in the files if empty.
        splits: The splits.
        index_column: The column that numbers the examples of a test file.
        malformed_lines: How many lines of a labelled split may have too few or too many columns, and are then
            left out; one more is an error.
    """

    hub_name: str
    columns: tuple[str, ...]
    label_column: str = "label"
    label_texts: tuple[str, ...] = ()
    hub_columns: tuple[str, ...] = ()
    splits: tuple[GlueSplit, ...] = _SPLITS
    index_column: str = "index"
    malformed_lines: int = 0

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """Names of the labelled splits that are not for training."""
        return tuple(split.name for split in self.splits if split.labelled and split.name != "train")

    def load(self, folder: Path | None, only: Sequence[str] = ()) -> DatasetDict:
        """Read splits from a folder in GLUE's layout, `<folder>/<task>/<split>.tsv`, or (None) from the hub.

        Args:
            folder: The folder.
            only: Names of the splits to read; all where empty. No other file need be there.

        Returns:
            The splits `train`, `dev` and `test` (MNLI: `dev_matched`, `dev_mismatched`, and likewise `test_…`), or
            those of them that were asked for. Columns: `idx`, the row number (in test splits of a folder the number
            that the file gives, which is the one that GLUE's server asks for); `sentence1`; `sentence2` where the task
            has pairs; `label`, a class number or a 32-bit score, and -1 where it is hidden.
        """
        splits = [split for split in self.splits if split.name in only or not only]
        source = _from_hub(self) if folder is None else Path(folder) / self.name
        read = {
            split.name: _read(self, split, source) if isinstance(source, Path) else _of_hub(self, split, source)
            for split in splits
        }
        features = features_of(self.label_names, len(self.columns) == 2)
        return DatasetDict({name: Dataset.from_dict(columns, features=features) for name, columns in read.items()})


def _read(task: GlueTask, split: GlueSplit, folder: Path) -> dict[str, list[Any]]:
    """The columns of one file of GLUE's tab-separated format."""
    path = folder / split.file
    if not path.is_file():
        raise MissingDataError(
            f"{path}: expected the {split.name} split of {task.name}; there is no such "
            f"{'file' if folder.is_dir() else 'folder'}. Pass as GLUE_DIR (--glue-dir) the folder that holds "
            f"{task.name}/{split.file}, or leave it out to load {task.name} from the hub."
        )
    text = read_text(path)
    # Only newlines end a line: other separators stand in sentences.
    lines = [line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")] if text.strip() else []
    header = _header(task, split, path, lines)
    names = [f"sentence{number}" for number, _ in enumerate(task.columns, start=1)]
    columns: dict[str, list[Any]] = {name: [] for name in ("idx", *names, "label")}
    seen, skipped = set[int](), 0
    for number, line in enumerate(lines, start=1):
        if number == 1 and split.columns is None:
            continue
        where, fields = f"{path}, line {number}", line.split("\t")
        if len(fields) != len(header):
            fault = f"{where}: expected {len(header)} columns; got {len(fields)}: {_shown(fields)}."
            skipped += 1
            if skipped > (task.malformed_lines if split.labelled else 0):
                raise DataError(f"{fault} {_REMEDY}")
            _log.warning("%s It is left out.", fault)
            continue
        row = dict(zip(header, map(str.strip, fields), strict=True))
        index = len(seen) if split.labelled else _index(row[task.index_column], where)
        if index in seen:
            raise DataError(f"{where}: expected an index of its own; got {index} again. {_REMEDY}")
        seen.add(index)
        columns["idx"].append(index)
        for name, column in zip(names, task.columns, strict=True):
            columns[name].append(row[column])
        columns["label"].append(_label(task, row[task.label_column], where) if split.labelled else -1)
    if not seen:
        raise DataError(f"{path}: expected examples; got none. Fetch the file anew.")
    if not any(any(columns[name]) for name in names):
        raise DataError(f"{path}: expected texts in {', '.join(task.columns)}; all are empty. Fetch the file anew.")
    return columns


def _header(task: GlueTask, split: GlueSplit, path: Path, lines: Sequence[str]) -> tuple[str, ...]:
    """The names of the columns."""
    if split.columns is not None:
        return split.columns
    if not lines:
        raise DataError(f"{path}: expected a header line; got an empty file. Fetch the file anew.")
    header = tuple(name.strip() for name in lines[0].split("\t"))
    wanted = (*task.columns, task.label_column if split.labelled else task.index_column)
    if not set(wanted) <= set(header):
        raise DataError(
            f"{path}, line 1: expected a header with {', '.join(map(repr, wanted))}; got {_shown(header)}. "
            f"Fetch the {split.name} file of {task.name} in GLUE's own format."
        )
    return header


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


def _shown(fields: Sequence[str]) -> str:
    text = " | ".join(fields)
    return repr(text if len(text) <= 80 else f"{text[:80]}…")


def _from_hub(task: GlueTask) -> DatasetDict:
    try:
        return datasets.load_dataset(_HUB, task.hub_name)
    except Exception as error:  # whatever keeps the hub away, the remedy is the same
        raise MissingDataError(
            f"{task.name}: no folder was given, and the hub's {_HUB} ({task.hub_name}) could not be loaded "
            f"({type(error).__name__}: {error}). Either pass GLUE_DIR (--glue-dir), a folder that holds "
            f"{task.name}/{task.splits[0].file}, or allow access to the hub (with HF_HUB_OFFLINE unset)."
        ) from error


def _of_hub(task: GlueTask, split: GlueSplit, source: DatasetDict) -> dict[str, Any]:
    """The columns of one split of the hub."""
    where = f"{_HUB} ({task.hub_name})"
    if split.hub not in source:
        raise DataError(f"{where}: expected a split {split.hub}; got {', '.join(source)}.")
    rows, sentences = source[split.hub], task.hub_columns or task.columns
    missing = [name for name in (*sentences, "label") if name not in rows.column_names]
    if missing:
        got = ", ".join(rows.column_names)
        raise DataError(f"{where}, {split.hub}: expected the columns {', '.join(missing)}; got {got}.")
    classes = getattr(rows.features["label"], "names", None)
    if task.label_names and classes != list(task.label_names):
        raise DataError(f"{where}: expected the classes {', '.join(task.label_names)}; got {classes}.")
    texts = {f"sentence{n}": [text.strip() for text in rows[name]] for n, name in enumerate(sentences, start=1)}
    return {"idx": range(len(rows)), **texts, "label": rows["label"][:]}
