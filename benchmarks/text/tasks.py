"""Banking77 and CLINC150, read from a folder of the user (`--text-dir`, or TEXT_DIR).

`<folder>/banking77/{train,test}.csv` has the columns `text,category`;
`<folder>/clinc150/data_full.json` holds lists of [text, intent] under `train`, `val`, `test` and
`oos_train`, `oos_val`, `oos_test`. Classes are numbered in the order of their names; in CLINC150
out of scope is the last class, takes no part in the score, and has a number of its own.

Reference: Casanueva et al., "Efficient Intent Detection with Dual Sentence Encoders", NLP4ConvAI
2020; Larson et al., "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction",
EMNLP 2019.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict

from benchmarks.examples import features_of, read_text
from benchmarks.files import DataError
from benchmarks.tasks import Task, register

__all__ = ["BANKING77", "CLINC150", "IntentTask"]

_OUT_OF_SCOPE = "oos"
_OPTION = "--text-dir (or TEXT_DIR)"
_Rows = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class IntentTask(Task):
    """A task whose rows are a message and the name of its intent.

    Args:
        read: Reads a split: the folder above and the name of the split → rows (text, intent).
        splits: Names of the splits.
    """

    read: Callable[[Path, str], _Rows]
    splits: tuple[str, ...] = ("train", "test")

    @property
    def folder_option(self) -> str:
        """Option of the command line that names the folder of the data."""
        return "--text-dir"

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """The test set, whose labels are public; a part of train selects."""
        return ("test",)

    def load(self, folder: Path | None, only: Sequence[str] = ()) -> DatasetDict:
        """Read the splits `train` and `test` (CLINC150: `dev` too); see `Task.load`."""
        if folder is None:
            raise DataError(f"{self.name}: no folder was given. Pass {_OPTION}.")
        train = self.read(folder, "train")
        names = sorted({intent for _, intent in train} - {_OUT_OF_SCOPE})
        names += [] if self.outside is None else [_OUT_OF_SCOPE]
        if len(names) != self.classes:
            raise DataError(
                f"{folder}: expected {self.classes} classes of {self.name}; got {len(names)}."
            )
        found = {
            split: train if split == "train" else self.read(folder, split)
            for split in self.splits
            if split in only or not only
        }
        return DatasetDict({split: _dataset(rows, names) for split, rows in found.items()})


def _dataset(rows: _Rows, names: Sequence[str]) -> Dataset:
    number = {name: place for place, name in enumerate(names)}
    columns = {
        "idx": range(len(rows)),
        "sentence1": [text.strip() for text, _ in rows],
        "label": [number[intent] for _, intent in rows],
    }
    return Dataset.from_dict(columns, features=features_of(names))


def _banking77(folder: Path, split: str) -> _Rows:
    path = folder / "banking77" / f"{split}.csv"
    header, *lines = list(csv.reader(io.StringIO(read_text(path, _OPTION), newline="")))
    if header != ["text", "category"] or any(len(line) != 2 for line in lines):
        raise DataError(
            f"{path}: expected the header text,category, and two columns; got {header}."
        )
    return [(text, intent) for text, intent in lines]


def _clinc150(folder: Path, split: str) -> _Rows:
    path = folder / "clinc150" / "data_full.json"
    key = "val" if split == "dev" else split
    try:
        data = json.loads(read_text(path, _OPTION))
        return [(text, intent) for text, intent in (*data[key], *data[f"oos_{key}"])]
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{path}: expected lists of [text, intent] under {key!r} and 'oos_{key}' ({error})."
        ) from error


BANKING77 = register(IntentTask("Banking77", ("accuracy",), classes=77, read=_banking77))
CLINC150 = register(
    IntentTask(
        "CLINC150", ("accuracy",), classes=151, outside=150, read=_clinc150, splits=("train", "dev", "test")
    )
)  # fmt: skip
