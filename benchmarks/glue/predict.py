"""Answers of kept models to GLUE's test sets, early exits and all."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset

from benchmarks.glue import data as glue_data
from benchmarks.glue.evaluation import batches
from benchmarks.glue.keeping import KeptModel, load_kept
from benchmarks.glue.model import Collator, answers
from benchmarks.glue.submission import FILES, SubmissionFile, check_submission, write_submission
from benchmarks.glue.tasks import get
from ponder._utils.files import write_json
from ponder.errors import ArgumentError, DataError

__all__ = ["Answered", "Submission", "predict", "submit"]


@dataclass(frozen=True)
class Answered:
    """Predictions for one file.

    Args:
        predictions: Class numbers or scores, in the order of the data, `(examples,)`.
        mean_exit_step: Mean over the examples; None where no model answered.
        source: Which run answered, or what stands in for it.
    """

    predictions: list[float]
    mean_exit_step: float | None
    source: str


@dataclass(frozen=True)
class Submission:
    """What was written.

    Args:
        path: The zip.
        files: By file name.
    """

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

    Raises:
        ArgumentError: No model at all, two of a task, or a task without one where `fill` is off.
    """
    kept = _by_task(models)
    if not kept:
        raise ArgumentError(
            "--model",
            expected="at least one kept model",
            got="none",
            remedy="Name a folder that `run --keep-model` made, or pass --run or --recipe.",
        )
    missing = sorted({file.model_of for file in FILES} - set(kept))
    if missing and not fill:
        raise ArgumentError(
            "--model",
            expected="a model of every task, since GLUE takes all files or none",
            got=f"none for {', '.join(missing)}",
            remedy="Pass --fill-missing to answer those by a constant, and score them as such.",
        )
    files: dict[str, Answered] = {}
    for file in FILES:
        model = kept.get(file.model_of)
        files[file.name] = _constant(file, glue_dir) if model is None else _answered(file, model, glue_dir, batch_size)
        say(_line(file, files[file.name]))
    path = write_submission(out, {name: each.predictions for name, each in files.items()})
    faults = check_submission(path, glue_dir)
    if faults:
        raise DataError(f"{path}: not what GLUE asks for: {'; '.join(faults)}.")
    write_json(
        out / "submission.json",
        {name: {"source": each.source, "mean_exit_step": each.mean_exit_step} for name, each in files.items()},
    )
    return Submission(path, files)


@torch.inference_mode()
def predict(kept: KeptModel, data: Dataset, batch_size: int = 64) -> tuple[list[float], list[int]]:
    """Answers and exit steps of one model, in the order of `data`, by the policy of its run.

    Args:
        kept: The model.
        data: Examples, as `benchmarks.glue.data.load` gives them.
        batch_size: Examples a batch.
    """
    task = get(kept.config.task)
    ready = glue_data.tokenize(data, kept.tokenizer, kept.config.max_length)
    found: dict[int, tuple[float, int]] = {}
    for batch in batches(ready, Collator(kept.tokenizer), batch_size, kept.model.device):
        rows = batch["row_ids"].tolist()
        out = kept.model(**{name: value for name, value in batch.items() if name != "labels"})
        given = answers(task, out.logits.float().cpu().numpy()).tolist()
        found.update(zip(rows, zip(given, out.exit_step.tolist(), strict=True), strict=True))
    ordered = [found[row] for row in data["idx"]]
    return [answer for answer, _ in ordered], [step for _, step in ordered]


def _by_task(folders: Iterable[Path]) -> dict[str, KeptModel]:
    kept: dict[str, KeptModel] = {}
    for folder in folders:
        model = load_kept(folder)
        task = get(model.config.task).name
        if task in kept:
            raise ArgumentError(
                "--model",
                expected="one model a task",
                got=f"two of {task}, the second at {folder}",
                remedy="Choose one, by its held-out score.",
            )
        kept[task] = model
    return kept


def _answered(file: SubmissionFile, kept: KeptModel, glue_dir: Path | None, batch_size: int) -> Answered:
    predictions, steps = predict(kept, file.load(glue_dir), batch_size)
    return Answered(predictions, statistics.fmean(steps), kept.config.key)


def _constant(file: SubmissionFile, glue_dir: Path | None) -> Answered:
    """The most frequent class of train (regression: its mean score); the first class where there is no train here."""
    rows = _size(file, glue_dir)
    try:
        labels = _train_labels(file, glue_dir)
    except glue_data.MissingDataError:
        value = 0.0 if file.labels else statistics.fmean(file.task.label_range or (0.0,))
        return Answered([value] * rows, None, f"constant {file.line(value)} (no data here)")
    value = float(statistics.mode(labels) if file.labels else statistics.fmean(labels))
    return Answered([value] * rows, None, f"constant {file.line(value)} (most frequent in train, or its mean)")


def _size(file: SubmissionFile, glue_dir: Path | None) -> int:
    """Of the test split where it is here, and else of the official one."""
    try:
        return len(file.load(glue_dir))
    except glue_data.MissingDataError:
        return file.rows


def _train_labels(file: SubmissionFile, glue_dir: Path | None) -> Sequence[float]:
    return [float(label) for label in glue_data.load(get(file.model_of), glue_dir, ["train"])["train"]["label"]]


def _line(file: SubmissionFile, answered: Answered) -> str:
    depth = "" if answered.mean_exit_step is None else f", mean exit step {answered.mean_exit_step:.2f}"
    return f"{file.name}: {len(answered.predictions)} predictions by {answered.source}{depth}"
