"""GLUE's submission: answers of kept models in eleven files and one zip, as gluebenchmark.com takes them, and a check.

Every file has the header `index<TAB>prediction` and a line for each example of the test set, numbered from 0. Labels
are words for MNLI, AX, QNLI and RTE, 0 or 1 for CoLA, SST-2, MRPC, QQP and WNLI, and a score in [0, 5] with three
decimals for STS-B.
"""

from __future__ import annotations

import re
import statistics
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from benchmarks import tasks
from benchmarks.glue.data import GlueTask, MissingDataError, tokenize
from benchmarks.glue.evaluation import batches
from benchmarks.glue.metrics import answers
from benchmarks.glue.model import Collator
from benchmarks.glue.model_store import KeptModel, load_kept
from benchmarks.glue.tasks import DIAGNOSTIC, TASKS
from ponder._utils.files import make_folder, write_json, write_text
from ponder.errors import ArgumentError, DataError

__all__ = ["FILES", "check_submission", "predict", "submit", "write_submission"]

_HEADER = "index\tprediction"
_SCORE = re.compile(r"[0-5]\.\d{3}")


@dataclass(frozen=True)
class SubmissionFile:
    """One file of a submission: whose test split it answers, by a model of which task; `rows` are the official."""

    name: str
    task: GlueTask
    split: str
    model_of: GlueTask
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
        data = self.task.load(glue_dir, [self.split])[self.split]
        indices = list(data["idx"])
        if sorted(indices) != list(range(len(indices))):
            expected = f"examples numbered 0 to {len(indices) - 1}; got others. Fetch the file anew."
            raise DataError(f"{self.task.name}, {self.split}: expected {expected}")
        return data.select(np.argsort(indices))


_OFFICIAL = {
    **{"CoLA": 1063, "SST-2": 1821, "MRPC": 1725, "STS-B": 1379, "MNLI-m": 9796, "MNLI-mm": 9847, "QNLI": 5463},
    **{"QQP": 390965, "RTE": 3000, "WNLI": 146, "AX": 1104},
}
_BY_NAME = {task.name: task for task in TASKS}
_OF_MNLI = {
    "MNLI-m": (_BY_NAME["MNLI"], "test_matched"),
    "MNLI-mm": (_BY_NAME["MNLI"], "test_mismatched"),
    "AX": (DIAGNOSTIC, "test"),
}


def _file(name: str, rows: int) -> SubmissionFile:
    task, split = _OF_MNLI[name] if name in _OF_MNLI else (_BY_NAME[name], "test")
    return SubmissionFile(f"{name}.tsv", task, split, _BY_NAME["MNLI" if name in _OF_MNLI else name], rows)


FILES = tuple(_file(name, rows) for name, rows in _OFFICIAL.items())
"""Everything that a submission holds."""


@dataclass(frozen=True)
class Answered:
    """Predictions for one file in the order of the data, and which run answered, or what stands in for it."""

    predictions: list[float]
    mean_exit_step: float | None
    source: str


@dataclass(frozen=True)
class Submission:
    """What was written: the zip, and its files by name."""

    path: Path
    files: dict[str, Answered]


def submit(
    models: Iterable[Path],
    glue_dir: Path | None,
    out: Path,
    *,
    fill: bool = False,
    batch_size: int = 64,
    say: Callable[[str], object] = print,
) -> Submission:
    """Write `<out>/submission.zip`, its files, and `<out>/submission.json`, which says where each comes from.

    Args:
        models: Folders that `run --keep-model` wrote, at most one a task; MNLI's answers AX too.
        glue_dir: GLUE's data; the hub where None.
        out: Folder.
        fill: Answer tasks without a model by a constant, since GLUE takes all files or none.
        batch_size: Examples a batch.
        say: Told of each file as it is made.
    """
    kept = _by_task(models)
    if not kept:
        remedy = "Name a folder that `run --keep-model` made, or pass --run or --recipe."
        raise ArgumentError("--model", expected="at least one kept model", got="none", remedy=remedy)
    missing = sorted({file.model_of.name for file in FILES} - set(kept))
    if missing and not fill:
        raise ArgumentError(
            "--model",
            expected="a model of every task, since GLUE takes all files or none",
            got=f"none for {', '.join(missing)}",
            remedy="Pass --fill-missing to answer those by a constant, and score them as such.",
        )
    files: dict[str, Answered] = {}
    for file in FILES:
        model = kept.get(file.model_of.name)
        made = _constant(file, glue_dir) if model is None else _answered(file, model, glue_dir, batch_size)
        depth = "" if made.mean_exit_step is None else f", mean exit step {made.mean_exit_step:.2f}"
        say(f"{file.name}: {len(made.predictions)} predictions by {made.source}{depth}")
        files[file.name] = made
    path = write_submission(out, {name: each.predictions for name, each in files.items()})
    faults = check_submission(path, glue_dir)
    if faults:
        raise DataError(f"{path}: not what GLUE asks for: {'; '.join(faults)}.")
    sources = {name: {"source": each.source, "mean_exit_step": each.mean_exit_step} for name, each in files.items()}
    write_json(out / "submission.json", sources)
    return Submission(path, files)


@torch.inference_mode()
def predict(kept: KeptModel, data: Dataset, batch_size: int = 64) -> tuple[list[float], list[int]]:
    """Answers and exit steps of one model, in the order of `data`, by the policy of its run."""
    task = tasks.get(kept.config.task)
    ready = tokenize(data, kept.tokenizer, kept.config.max_length)
    found: dict[int, tuple[float, int]] = {}
    for batch in batches(ready, Collator(kept.tokenizer), batch_size, kept.model.device):
        out = kept.model(**{name: value for name, value in batch.items() if name != "labels"})
        given = answers(task, out.logits.float().cpu().numpy()).tolist()
        found.update(zip(batch["row_ids"].tolist(), zip(given, out.exit_step.tolist(), strict=True), strict=True))
    ordered = [found[row] for row in data["idx"]]
    return [answer for answer, _ in ordered], [step for _, step in ordered]


def write_submission(out: Path, predictions: Mapping[str, Sequence[float]]) -> Path:
    """Write every file of `FILES`, and `submission.zip` with them.

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

    Returns:
        One sentence a fault; none where GLUE's server would take it.
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
    for file in (file for file in FILES if file.name in found):
        faults += [f"{file.name}{fault}" for fault in _faults(file, found[file.name], _rows(file, glue_dir, hub=False))]
    return faults


def _rows(file: SubmissionFile, glue_dir: Path | None, hub: bool = True) -> int:
    """Of the test split where it is here, and else of the official one."""
    try:
        return len(file.load(glue_dir)) if hub or glue_dir is not None else file.rows
    except MissingDataError:
        return file.rows


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


def _by_task(folders: Iterable[Path]) -> dict[str, KeptModel]:
    kept: dict[str, KeptModel] = {}
    for folder in folders:
        model = load_kept(folder)
        name = tasks.get(model.config.task).name
        if name in kept:
            got, remedy = f"two of {name}, the second at {folder}", "Choose one, by its held-out score."
            raise ArgumentError("--model", expected="one model a task", got=got, remedy=remedy)
        kept[name] = model
    return kept


def _answered(file: SubmissionFile, kept: KeptModel, glue_dir: Path | None, batch_size: int) -> Answered:
    predictions, steps = predict(kept, file.load(glue_dir), batch_size)
    return Answered(predictions, statistics.fmean(steps), kept.config.key)


def _constant(file: SubmissionFile, glue_dir: Path | None) -> Answered:
    """The most frequent class of train (regression: its mean score); the first class where there is no train here."""
    try:
        labels = [float(label) for label in file.model_of.load(glue_dir, ["train"])["train"]["label"]]
        value = statistics.mode(labels) if file.labels else statistics.fmean(labels)
        why = "most frequent in train, or its mean"
    except MissingDataError:
        value, why = 0.0 if file.labels else statistics.fmean(file.task.label_range or (0.0,)), "no data here"
    return Answered([value] * _rows(file, glue_dir), None, f"constant {file.line(value)} ({why})")
