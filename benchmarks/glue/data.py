"""GLUE's data behind one interface, from a folder or from the hub.

Both sources give the same splits, columns and labels. GLUE's own files have quirks that are read as
they are meant: a byte-order mark, quotes that are part of the text, files without a header, lines
without a final newline, blanks at the ends of a sentence. Labels that GLUE keeps to itself are -1.
A line with too few or too many columns is an error that names file and line; in the labelled splits
of QQP, whose official dump has a few, it is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict

from benchmarks.examples import features_of, read_text
from benchmarks.files import DataError
from benchmarks.tasks import Task

__all__ = ["GlueSplit", "GlueTask"]

_HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueSplit:
    """One split of a task; `columns` are those of a file that has no header line."""

    name: str
    columns: tuple[str, ...] | None = None

    @property
    def labelled(self) -> bool:
        """Whether the labels are public; GLUE keeps those of the test splits."""
        return not self.name.startswith("test")


@dataclass(frozen=True, kw_only=True)
class GlueTask(Task):
    """One task of GLUE: beside its labels and metrics, its files.

    Args:
        hub_name: Name of the configuration on the hub.
        columns: The one or two columns of a file that hold the sentences.
        label_column: The column of a file that holds the label.
        label_texts: How a file writes each class, in the order of `label_names`; the names
            themselves if empty.
        hub_columns: The columns that hold the sentences on the hub; as in the files if empty.
        splits: The splits.
        malformed_lines: How many lines of a labelled split may have too few or too many columns,
            and are then left out; one more is an error.
    """

    hub_name: str
    columns: tuple[str, ...]
    label_column: str = "label"
    label_texts: tuple[str, ...] = ()
    hub_columns: tuple[str, ...] = ()
    splits: tuple[GlueSplit, ...] = (GlueSplit("train"), GlueSplit("dev"), GlueSplit("test"))
    malformed_lines: int = 0

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """Names of the labelled splits that are not for training."""
        return tuple(
            split.name for split in self.splits if split.labelled and split.name != "train"
        )

    def load(self, folder: Path | None, only: Sequence[str] = ()) -> DatasetDict:
        """Read splits from `<folder>/<task>/<split>.tsv`, or from the hub if the folder is None.

        See `Task.load`; MNLI has `dev_matched` and `dev_mismatched`. `label` is a class number or a
        32-bit number.
        """
        splits = [split for split in self.splits if split.name in only or not only]
        hub = self._hub() if folder is None else None
        read: dict[str, dict[str, Any]] = {}
        for split in splits:
            if hub is not None:
                read[split.name] = self._of_hub(hub, split)
            else:
                read[split.name] = self._read(split, Path(folder or "."))
        features = features_of(self.label_names, len(self.columns) == 2)
        return DatasetDict(
            {name: Dataset.from_dict(columns, features=features) for name, columns in read.items()}
        )

    def _read(self, split: GlueSplit, folder: Path) -> dict[str, list[Any]]:
        """Return the columns of one file of GLUE's tab-separated format."""
        path = folder / self.name / f"{split.name}.tsv"
        sentences = [f"sentence{number}" for number, _ in enumerate(self.columns, start=1)]
        columns: dict[str, list[Any]] = {name: [] for name in ("idx", *sentences, "label")}
        for place, (where, row) in enumerate(self._rows(path, split)):
            columns["idx"].append(place)
            for name, column in zip(sentences, self.columns, strict=True):
                columns[name].append(row[column])
            label = self._label(row[self.label_column], where) if split.labelled else -1
            columns["label"].append(label)
        if not columns["idx"]:
            raise DataError(f"{path}: expected examples; got none. Fetch the file anew.")
        return columns

    def _rows(self, path: Path, split: GlueSplit) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the place of each line in a file, and its fields by column.

        Up to `malformed_lines` lines of a labelled split may have another number of fields; they
        are left out.
        """
        # Only newlines end a line: other separators stand in sentences.
        lines = read_text(path, "--glue-dir (or GLUE_DIR)").rstrip("\r\n").split("\n")
        first = 0
        header = split.columns
        if header is None:
            first = 1
            header = tuple(name.strip() for name in lines[0].split("\t"))
        wanted = [*self.columns]
        if split.labelled:
            wanted.append(self.label_column)
        if not set(wanted) <= set(header):
            expected = ", ".join(wanted)
            got = f"{lines[0][:80]!r}"
            raise DataError(f"{path}, line 1: expected a header with {expected}; got {got}.")
        allowed = self.malformed_lines if split.labelled else 0
        for number, line in enumerate(lines[first:], start=1 + first):
            where = f"{path}, line {number}"
            fields = line.removesuffix("\r").split("\t")
            if len(fields) == len(header):
                yield where, dict(zip(header, map(str.strip, fields), strict=True))
                continue
            allowed -= 1
            if allowed < 0:
                got = f"{len(fields)}: {line[:80]!r}"
                raise DataError(f"{where}: expected {len(header)} columns; got {got}.")

    def _label(self, text: str, where: str) -> int | float:
        texts = self.label_texts or self.label_names
        try:
            if self.label_range is None:
                return texts.index(text)
            value = float(text)
            low, high = self.label_range
            if low <= value <= high:
                return value
        except ValueError:
            pass
        expected = ", ".join(texts) if self.label_range is None else f"{self.label_range}"
        raise DataError(
            f"{where}: expected a label of {expected}; got {text!r}. Correct or remove the line."
        )

    def _hub(self) -> DatasetDict:
        try:
            return datasets.load_dataset(_HUB, self.hub_name)
        except Exception as error:  # one remedy for every reason
            raise DataError(
                f"{self.name}: no folder was given, and the hub's {_HUB} ({self.hub_name}) could "
                f"not be loaded ({type(error).__name__}: {error}). Pass GLUE_DIR (--glue-dir), a "
                f"folder that holds {self.name}/{self.splits[0].name}.tsv, or allow access to the "
                "hub (with HF_HUB_OFFLINE unset)."
            ) from error

    def _of_hub(self, source: DatasetDict, split: GlueSplit) -> dict[str, Any]:
        """Return the columns of one split of the hub."""
        rows = source[split.name.replace("dev", "validation")]
        texts = {
            f"sentence{number}": [text.strip() for text in rows[name]]
            for number, name in enumerate(self.hub_columns or self.columns, start=1)
        }
        return {"idx": range(len(rows)), **texts, "label": rows["label"][:]}
