"""GLUE's submission: answers of kept models in eleven files and one zip, as gluebenchmark.com takes them.

Every file has the header `index<TAB>prediction` and a line for each example of the test set, numbered from 0. Labels
are words for MNLI, AX, QNLI and RTE, 0 or 1 for CoLA, SST-2, MRPC, QQP and WNLI, and a score in [0, 5] with three
decimals for STS-B.
"""

from __future__ import annotations

import statistics
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from benchmarks import tasks
from benchmarks.command_line import check_writable
from benchmarks.examples import tokenize
from benchmarks.glue.data import GlueTask
from benchmarks.glue.model import KeptModel, load_kept
from benchmarks.glue.tasks import DIAGNOSTIC, TASKS
from benchmarks.metrics import answers
from ponder._utils.files import make_folder, write_text
from ponder.errors import ArgumentError, DataError

__all__ = ["FILES", "predict", "submit", "write_submission"]


@dataclass(frozen=True)
class SubmissionFile:
    """One file of a submission: whose test split it answers, by a model of which task."""

    name: str
    task: GlueTask
    split: str
    model_of: str

    def line(self, prediction: float) -> str:
        """A class number or a score, as the file writes it; scores are cut off at the ends of the task's range."""
        if self.task.label_range is None:
            return (self.task.label_texts or self.task.label_names)[int(prediction)]
        low, high = self.task.label_range
        return f"{min(max(float(prediction), low), high):.3f}"

    def load(self, glue_dir: Path | None) -> Dataset:
        """The examples, in the order of their numbers."""
        data = self.task.load(glue_dir, [self.split])[self.split]
        indices = list(data["idx"])
        if sorted(indices) != list(range(len(indices))):
            expected = f"examples numbered 0 to {len(indices) - 1}; got others. Fetch the file anew."
            raise DataError(f"{self.task.name}, {self.split}: expected {expected}")
        return data.select(np.argsort(indices))


_MNLI = next(task for task in TASKS if task.name == "MNLI")
FILES = (
    *(SubmissionFile(f"{task.name}.tsv", task, "test", task.name) for task in TASKS if task is not _MNLI),
    SubmissionFile("MNLI-m.tsv", _MNLI, "test_matched", "MNLI"),
    SubmissionFile("MNLI-mm.tsv", _MNLI, "test_mismatched", "MNLI"),
    SubmissionFile("AX.tsv", DIAGNOSTIC, "test", "MNLI"),
)
"""Everything that a submission holds."""


def submit(
    models: Iterable[Path],
    glue_dir: Path | None,
    out: Path,
    *,
    batch_size: int = 64,
    say: Callable[[str], object] = print,
) -> Path:
    """Write the files of kept models, and `<out>/submission.zip` with them.

    `models` are folders that `run --keep-model` wrote, at most one a task; MNLI's answers AX too.
    """
    kept: dict[str, KeptModel] = {}
    for folder in models:
        model = load_kept(folder)
        name = tasks.get(model.config.task).name
        if name not in {file.model_of for file in FILES}:
            expected, got = "a model of a task of GLUE", f"one of {name}"
            raise ArgumentError("--model", expected=expected, got=got, remedy="Leave it out.")
        if name in kept:
            got, remedy = f"two of {name}, the second at {folder}", "Choose one, by its held-out score."
            raise ArgumentError("--model", expected="one model a task", got=got, remedy=remedy)
        kept[name] = model
    if not kept:
        raise ArgumentError("--model", expected="at least one kept model", got="none", remedy="See run --keep-model.")
    data = [(file, file.load(glue_dir)) for file in FILES if file.model_of in kept]  # all before anything is answered
    check_writable(out)
    predictions: dict[str, list[float]] = {}
    for file, rows in data:
        model = kept[file.model_of]
        predictions[file.name], steps = predict(model, rows, batch_size)
        depth = f"mean exit step {statistics.fmean(steps):.2f}"
        say(f"{file.name}: {len(steps)} predictions by {model.config.key}, {depth}")
    missing = [file.name for file in FILES if file.name not in predictions]
    if missing:
        say(f"GLUE takes all files or none, and there is no model for {', '.join(missing)}.")
    return write_submission(out, predictions)


def predict(kept: KeptModel, data: Dataset, batch_size: int = 64) -> tuple[list[float], list[int]]:
    """Answers and exit steps of one model, in the order of `data`, by the policy of its run."""
    ready = tokenize(data, kept.tokenizer, kept.config.max_length)
    found = kept.model.predict(ready.remove_columns("labels"), batch_size=batch_size)
    given = answers(tasks.get(kept.config.task), found.outputs.float().numpy())
    return given.tolist(), found.exit_step.tolist()


def write_submission(out: Path, predictions: Mapping[str, Sequence[float]]) -> Path:
    """Write the files that there are answers for, and `submission.zip`; its bytes depend on the predictions alone."""
    path, part = make_folder(out) / "submission.zip", out / ".submission.zip.part"
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in (file for file in FILES if file.name in predictions):
                rows = [f"{index}\t{file.line(value)}" for index, value in enumerate(predictions[file.name])]
                write_text(out / file.name, "\n".join(["index\tprediction", *rows]) + "\n")
                entry = zipfile.ZipInfo(file.name)  # dated 1980, so that equal predictions give equal bytes
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                archive.writestr(entry, (out / file.name).read_bytes())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
