"""The command `predict`: add answers to the columns of a file.

Answers are written in chunks as they come, so that `--resume` can continue after an interruption.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from ponder.calibration.statement import count
from ponder.cli.answers import AnswerFile, answer_file
from ponder.cli.outcome import Outcome
from ponder.cli.output import probe_file, progress, say
from ponder.cli.rerank import read_pools
from ponder.cli.show import show
from ponder.cli.texts import Texts, read_texts
from ponder.deploy.folders import Opened, OpenedRanker, open
from ponder.errors import ArgumentError

__all__ = ["UNANSWERED", "run"]

UNANSWERED = 1
"""The exit code if a row has no answer."""
_CHUNK = 512  # texts that are written at once
_STDOUT = "-"


def run(
    folder: Path, texts: Path, out: Path, reading: Mapping[str, Any], *, resume: bool, as_json: bool
) -> int:
    """Write the answers to texts, or the rankings of a ranker, and return the exit code."""
    to_file = str(out) != _STDOUT
    if to_file:
        probe_file(out, [texts, folder])
        _check_new(out, resume=resume)
    opened = open(folder)
    if isinstance(opened, OpenedRanker):
        return _rank(opened, texts, out, as_json=as_json)
    read = read_texts(texts, **reading, known=opened.columns)
    columns = _AnswerColumns.beside(read.rows[0])
    file = answer_file(out, [*read.rows[0], *columns.names])
    kept = 0
    if to_file:
        if out.exists():
            kept = file.resume(read.rows)
        out.parent.mkdir(parents=True, exist_ok=True)
    written = _write_answers(file, opened, read, columns, kept)
    show(_outcome(written, out, opened.num_steps), as_json=as_json, to_stderr=not to_file)
    for reason, number in written.reasons.items():
        say(f"{count(number, 'text')} without an answer: {reason}. The label is empty.")
    return UNANSWERED if written.reasons else 0


@dataclass(frozen=True)
class _AnswerColumns:
    """Names of the columns of the answers."""

    label: str
    probability: str
    exit_step: str

    @classmethod
    def beside(cls, existing: Collection[str]) -> Self:
        """Return names that the file of texts does not have yet."""
        names = [each.name for each in fields(cls)]
        return cls(*(f"predicted_{name}" if name in existing else name for name in names))

    @property
    def names(self) -> list[str]:
        """The names, in order."""
        return [self.label, self.probability, self.exit_step]


@dataclass(frozen=True)
class _Written:
    """Counts of the answers that were written.

    Args:
        kept: Number of answers of an earlier run.
        exit_steps: Exit steps of the answers of this run.
        reasons: Number of texts without an answer, by reason.
    """

    kept: int
    exit_steps: list[int] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)


def _write_answers(
    file: AnswerFile, opened: Opened, read: Texts, columns: _AnswerColumns, kept: int
) -> _Written:
    """Answer the texts after the first `kept`, and write them chunk by chunk."""
    written = _Written(kept)
    with progress() as advance:
        if not kept:
            file.append([], begins=True)
        for start in range(kept, len(read), _CHUNK):
            part = read.take(range(start, min(start + _CHUNK, len(read))))
            file.append(_answered_rows(opened, part, columns, written), begins=False)
            advance("answer", kept + len(written.exit_steps), len(read))
        file.finish()
    return written


def _answered_rows(
    opened: Opened, part: Texts, columns: _AnswerColumns, written: _Written
) -> list[dict[str, Any]]:
    """Return rows with their answers, and count them in `written`."""
    answers = opened.answer(part.texts)
    errors: Mapping[int, Exception] = getattr(answers, "errors", {})  # of a cascade
    labels = answers.labels
    probabilities = [float(share) for share in answers.probabilities]
    exit_steps = [int(step) for step in answers.exit_step]
    rows = []
    for place, row in enumerate(part.rows):
        label = None
        probability = None
        if math.isnan(probabilities[place]):
            written.reasons[_reason(errors.get(place))] += 1
        else:
            label = labels[place]
            probability = round(probabilities[place], 4)
        cells = {
            columns.label: label,
            columns.probability: probability,
            columns.exit_step: exit_steps[place],
        }
        rows.append({**row, **cells})
    written.exit_steps.extend(exit_steps)
    return rows


def _outcome(written: _Written, out: Path, num_steps: int) -> Outcome:
    answers = len(written.exit_steps)
    unanswered = sum(written.reasons.values())
    mean = sum(written.exit_steps) / max(answers, 1)
    facts = {
        "answers": answers - unanswered,
        "kept": written.kept,
        "without_answer": unanswered,
        "reasons": dict(written.reasons),
        "out": str(out),
        "mean_exit_step": mean,
        "num_steps": num_steps,
    }
    sentences = [f"{count(answers, 'answer')} in {out}; mean exit step {mean:.2f} of {num_steps}."]
    if written.kept:
        sentences.append(f"{count(written.kept, 'answer')} more from an earlier run.")
    return Outcome(facts, sentences)


@dataclass(frozen=True)
class _Written:
    """The answers that were written.

    Args:
        steps: The exit steps of the answers of this run.
        reasons: The number of rows without an answer, by the reason.
        kept: The number of answers of an earlier run.
    """

    steps: list[int]
    reasons: dict[str, int]
    kept: int


def _write_answers(opened: Opened, texts: Texts, out: Path, *, to_file: bool) -> _Written:
    """Write the answers to texts with all columns of their file, after those of an earlier run."""
    columns = list(texts.rows[0])
    names = {name: f"predicted_{name}" if name in columns else name for name in _ANSWERS}
    file = answer_file(out, [*columns, *names.values()])
    kept = file.resume(texts.rows) if to_file and out.exists() else 0
    if to_file:
        out.parent.mkdir(parents=True, exist_ok=True)
    steps: list[int] = []
    reasons: dict[str, int] = {}
    with progress() as advance:
        if not kept:
            file.append([], begins=True)
        for start in range(kept, len(texts), _CHUNK):
            part = texts.take(range(start, min(start + _CHUNK, len(texts))))
            rows = _answered(opened, part, names, reasons)
            file.append(rows, begins=False)
            steps += [row[names["exit_step"]] for row in rows]
            advance("answer", kept + len(steps), len(texts))
        file.finish()
    return _Written(steps, reasons, kept)


def _check_new(out: Path, *, resume: bool) -> None:
    """Refuse a file that exists, unless it is to be continued."""
    if out.exists() and not resume:
        raise ArgumentError(
            "--out",
            expected="a file that is not there yet",
            got=str(out),
            remedy="Pass --resume to go on with it, or name another.",
        )


def _reason(error: Exception | None) -> str:
    if error is None:
        return "the model answered NaN"
    return f"{type(error).__name__}: {error}"


def _rank(opened: OpenedRanker, queries: Path, out: Path, *, as_json: bool) -> int:
    """Write the order of each query's candidates as JSON lines, and return the exit code."""
    pools = read_pools(queries)
    file = answer_file(out, ["query", "ranking"])
    rankings = opened.predict(pools)
    rows = [
        {"query": pool.query, "ranking": ranking}
        for pool, ranking in zip(pools, rankings, strict=True)
    ]
    file.append(rows, begins=True)
    file.finish()
    sentence = f"{count(len(pools), 'ranking')} in {out}."
    outcome = Outcome({"queries": len(pools), "out": str(out)}, [sentence])
    show(outcome, as_json=as_json, to_stderr=str(out) == _STDOUT)
    return 0
