"""GLUE's submission: eleven files of predictions in one zip, in the format of gluebenchmark.com, and a check of it.

Every file has the header `index<TAB>prediction` and a line for each example of the test set, numbered from 0. Labels
are words for MNLI, AX, QNLI and RTE, 0 or 1 for CoLA, SST-2, MRPC, QQP and WNLI, and a score in [0, 5] with three
decimals for STS-B.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from benchmarks.glue import data as glue_data
from benchmarks.glue.tasks import DIAGNOSTIC, GlueTask, get
from ponder._utils.files import make_folder, write_text
from ponder.errors import DataError

__all__ = ["FILES", "SubmissionFile", "check_submission", "write_submission"]

_HEADER = "index\tprediction"
_SCORE = re.compile(r"[0-5]\.\d{3}")


@dataclass(frozen=True)
class SubmissionFile:
    """One file of a submission.

    Args:
        name: File name.
        task: Whose examples it answers.
        split: Its test split.
        model_of: The task whose model answers.
        rows: Examples in GLUE's official test set.
    """

    name: str
    task: GlueTask
    split: str
    model_of: str
    rows: int

    @property
    def labels(self) -> tuple[str, ...]:
        """How the file writes each class; none where it writes scores."""
        return self.task.label_texts or self.task.label_names

    def line(self, prediction: float) -> str:
        """A class number or a score, as the file writes it; scores are cut off at the ends of the task's range."""
        if self.task.label_range is None:
            return self.labels[int(prediction)]
        low, high = self.task.label_range
        return f"{min(max(float(prediction), low), high):.3f}"

    def is_legal(self, text: str) -> bool:
        """Whether the file may hold this prediction."""
        if self.task.label_range is None:
            return text in self.labels
        low, high = self.task.label_range
        return bool(_SCORE.fullmatch(text)) and low <= float(text) <= high

    def load(self, glue_dir: Path | None) -> Dataset:
        """The examples, in the order of their numbers."""
        data = glue_data.load(self.task, glue_dir, [self.split])[self.split]
        indices = list(data["idx"])
        if sorted(indices) != list(range(len(indices))):
            raise DataError(
                f"{self.task.name}, {self.split}: expected examples numbered 0 to {len(indices) - 1}; got others. "
                "Fetch the file anew."
            )
        return data.select(np.argsort(indices))


def _file(task: str, rows: int) -> SubmissionFile:
    return SubmissionFile(f"{task}.tsv", get(task), "test", task, rows)


FILES: tuple[SubmissionFile, ...] = (
    _file("CoLA", 1063),
    _file("SST-2", 1821),
    _file("MRPC", 1725),
    _file("STS-B", 1379),
    SubmissionFile("MNLI-m.tsv", get("MNLI"), "test_matched", "MNLI", 9796),
    SubmissionFile("MNLI-mm.tsv", get("MNLI"), "test_mismatched", "MNLI", 9847),
    _file("QNLI", 5463),
    _file("QQP", 390965),
    _file("RTE", 3000),
    _file("WNLI", 146),
    SubmissionFile("AX.tsv", DIAGNOSTIC, "test", "MNLI", 1104),
)
"""Everything that a submission holds."""


def write_submission(out: Path, predictions: Mapping[str, Sequence[float]]) -> Path:
    """Write every file of `FILES`, and `submission.zip` with them.

    Args:
        out: Folder.
        predictions: By file name, class numbers or scores in the order of the examples, `(examples,)`.

    Returns:
        The zip, whose bytes depend on the predictions alone.
    """
    missing = [file.name for file in FILES if file.name not in predictions]
    if missing:
        raise DataError(f"submission: GLUE takes all files or none; {', '.join(missing)} are missing.")
    make_folder(out)
    path, part = out / "submission.zip", out / ".submission.zip.part"
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in FILES:
                rows = [f"{index}\t{file.line(value)}" for index, value in enumerate(predictions[file.name])]
                text = "\n".join([_HEADER, *rows]) + "\n"
                write_text(out / file.name, text)
                entry = zipfile.ZipInfo(file.name)  # dated 1980, so that equal predictions give equal bytes
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                archive.writestr(entry, text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def check_submission(path: Path, glue_dir: Path | None = None) -> list[str]:
    """What is wrong with a submission: names, headers, numbers of rows, indices, labels.

    Args:
        path: The zip.
        glue_dir: GLUE's data; the number of rows of a file is that of its test file there, and where that is not there
            that of the official test set.

    Returns:
        One sentence a fault; none where GLUE's server would take it.

    Raises:
        DataError: It is no zip.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
            repeated = len(archive.namelist()) - len(found)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected a zip; got none ({error}). Make one with `predict`.") from error
    faults = [f"{file.name}: missing" for file in FILES if file.name not in found]
    faults += [f"{name}: no file of a submission" for name in found if name not in {file.name for file in FILES}]
    faults += [f"{repeated} names are there twice"] if repeated else []
    for file in FILES:
        if file.name in found:
            faults += [f"{file.name}{fault}" for fault in _faults(file, found[file.name], _rows(file, glue_dir))]
    return faults


def _rows(file: SubmissionFile, glue_dir: Path | None) -> int:
    source = next(split.file for split in file.task.splits if split.name == file.split)
    if glue_dir is None or not (glue_dir / file.task.name / source).exists():
        return file.rows
    return len(file.load(glue_dir))


def _faults(file: SubmissionFile, content: bytes, rows: int) -> Iterator[str]:
    """Of one file; the first bad line is named, and the rest of its kind is not."""
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError as error:
        yield f": expected plain text; got the byte {content[error.start]:#04x}"
        return
    header, *lines = text.removesuffix("\n").split("\n")
    if header != _HEADER:
        yield f", line 1: expected the header 'index<TAB>prediction'; got {header!r}"
    if len(lines) != rows:
        yield f": expected {rows} predictions; got {len(lines)}"
    for number, line in enumerate(lines):
        index, tab, prediction = line.partition("\t")
        if index != str(number) or not tab:
            yield f", line {number + 2}: expected the index {number} and a tab; got {line!r}"
            return
        if not file.is_legal(prediction):
            expected = f"one of {', '.join(file.labels)}" if file.labels else "a score in [0, 5] with three decimals"
            yield f", line {number + 2}: expected {expected}; got {prediction!r}"
            return
