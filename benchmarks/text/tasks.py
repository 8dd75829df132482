"""Banking77 and CLINC150, read from a folder that the user names (`--text-dir`, or TEXT_DIR in the environment).

`<folder>/banking77/{train,test}.csv` has the columns `text,category`; `<folder>/clinc150/data_full.json` holds lists of
[text, intent] under `train`, `val`, `test` and `oos_train`, `oos_val`, `oos_test`. Classes are numbered in the order of
their names; what is out of scope of CLINC150 is the last class, takes no part in the score, and is reported apart.

Reference: Casanueva et al., "Efficient Intent Detection with Dual Sentence Encoders", NLP4ConvAI 2020; Larson et al.,
"An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction", EMNLP 2019.
"""

from __future__ import annotations

import csv
import io
import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict

from benchmarks.examples import MissingDataError, features_of, read_text
from benchmarks.tasks import Task, register
from ponder.errors import DataError

__all__ = ["BANKING77", "CLINC150", "IntentTask"]

_OUT_OF_SCOPE = "oos"
_Rows = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class IntentTask(Task):
    """A task whose rows are a message and the name of its intent."""

    folder: str

    @property
    def folder_option(self) -> str:
        """The option of the command line that says where the data lie."""
        return "--text-dir"

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """The test set, whose labels are public; a part of train selects."""
        return ("test",)

    def load(self, folder: Path | None, only: Sequence[str] = ()) -> DatasetDict:
        """Read the splits `train` and `test` (CLINC150: `dev` too); see `Task.load`.

        Raises:
            MissingDataError: There is no folder, or a file is not in it.
            DataError: A file is of another format, or its classes are not those of the task.
        """
        if folder is None:
            raise MissingDataError(f"{self.name}: no folder was given. Pass --text-dir, or set TEXT_DIR.")
        train = self.rows(folder / self.folder, "train")
        names = sorted({intent for _, intent in train} - {_OUT_OF_SCOPE})
        names += [] if self.outside is None else [_OUT_OF_SCOPE]
        if len(names) != self.classes:
            raise DataError(
                f"{folder / self.folder}: expected {self.classes} classes in the training data of {self.name}; got "
                f"{len(names)}. Fetch it anew."
            )
        wanted = [split for split in self.splits if split in only or not only]
        found = {split: train if split == "train" else self.rows(folder / self.folder, split) for split in wanted}
        return DatasetDict({split: self._dataset(split, rows, names) for split, rows in found.items()})

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that there are."""

    @abstractmethod
    def rows(self, folder: Path, split: str) -> _Rows:
        """The messages of a split, and the names of their intents."""

    def _dataset(self, split: str, rows: _Rows, names: Sequence[str]) -> Dataset:
        number = {name: place for place, name in enumerate(names)}
        for row, (text, intent) in enumerate(rows):
            if intent not in number or not text.strip():
                raise DataError(
                    f"{self.name}, {split}, row {row}: expected a message and an intent of the training data; got "
                    f"{text[:80]!r}, {intent!r}. Correct or remove it."
                )
        columns = {
            "idx": range(len(rows)),
            "sentence1": [text.strip() for text, _ in rows],
            "label": [number[intent] for _, intent in rows],
        }
        return Dataset.from_dict(columns, features=features_of(names))


class _Banking77(IntentTask):
    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "test")

    def rows(self, folder: Path, split: str) -> _Rows:
        path = folder / f"{split}.csv"
        try:
            header, *lines = list(csv.reader(io.StringIO(_content(path), newline=""))) or [[]]
        except csv.Error as error:  # a quote that nothing closes, say
            raise DataError(
                f"{path}: expected comma-separated values ({error}). Correct it, or fetch it anew."
            ) from error
        if header != ["text", "category"] or not lines:
            raise DataError(f"{path}, line 1: expected the header text,category, and rows below; got {header}.")
        for number, line in enumerate(lines, start=2):
            if len(line) != 2:
                raise DataError(f"{path}, row {number}: expected 2 columns; got {len(line)}. Correct or remove it.")
        return [(text, intent) for text, intent in lines]


class _Clinc150(IntentTask):
    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "dev", "test")

    def rows(self, folder: Path, split: str) -> _Rows:
        path, key = folder / "data_full.json", "val" if split == "dev" else split
        try:
            data = json.loads(_content(path))
            rows = [*data[key], *data[f"oos_{key}"]]
            if not data[key] or not all(isinstance(row, list) and [*map(type, row)] == [str, str] for row in rows):
                raise TypeError("got none, or other rows")
            return [(text, intent) for text, intent in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: expected lists of [text, intent] under {key!r} and 'oos_{key}' ({type(error).__name__}: "
                f"{error}). Fetch data_full.json anew."
            ) from error


def _content(path: Path) -> str:
    if not path.is_file():
        raise MissingDataError(f"{path}: there is no such file. Pass --text-dir (or TEXT_DIR), the folder above.")
    return read_text(path)


BANKING77 = register(_Banking77("Banking77", ("accuracy",), classes=77, folder="banking77"))
CLINC150 = register(_Clinc150("CLINC150", ("accuracy",), classes=151, outside=150, folder="clinc150"))
