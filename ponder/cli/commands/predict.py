"""The command `predict`: a file with the answers as new columns, which can be resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ponder.cli.answers import answer_file, names_of_answers
from ponder.cli.options import Columns, Folder, Json, NoHeader, TextsFile
from ponder.cli.outcome import Outcome
from ponder.cli.output import probe_file, progress, say
from ponder.cli.queries import read_pools
from ponder.cli.show import show
from ponder.cli.texts import Texts, read_texts
from ponder.deploy.folders import Opened, OpenedRanker, open
from ponder.errors import ArgumentError
from ponder.statistics.certificate import count

__all__ = ["UNANSWERED", "run"]

UNANSWERED = 1
"""The exit code if a row has no answer."""
_ANSWERS = ("label", "probability", "exit_step")
_CHUNK = 512
"""Texts that are written at once."""
_STDOUT = "-"


def run(
    folder: Folder,
    texts: TextsFile,
    out: Annotated[
        Path,
        typer.Option(
            help="The file to write: .csv, .jsonl or .parquet; "
            "- writes JSON lines to the standard output."
        ),
    ],
    column: Columns = None,
    no_header: NoHeader = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue after the answers that are in --out already.")
    ] = False,
    json: Json = False,
) -> None:
    """Answer every text at its exit, and write the answers beside the columns of the file.

    Exit code 1 if a text has no answer.

    Example: `ponder predict exits --texts new.csv --out answers.csv`
    """
    to_file = str(out) != _STDOUT
    if to_file:
        probe_file(out, [texts, folder])
        _check_new(out, resume=resume)
    opened = open(folder)
    if isinstance(opened, OpenedRanker):
        _rank(opened, texts, out, as_json=json)
        return
    given = read_texts(texts, column, header=not no_header, known=opened.columns)
    written = _write_answers(opened, given, out, to_file=to_file)
    unanswered = sum(written.reasons.values())
    mean = sum(written.steps) / max(len(written.steps), 1)
    facts = {
        "answers": len(written.steps) - unanswered,
        "kept": written.kept,
        "without_answer": unanswered,
        "reasons": written.reasons,
        "out": str(out),
        "mean_exit_step": mean,
        "num_steps": opened.num_steps,
    }
    answers = count(len(written.steps), "answer")
    sentences = [f"{answers} in {out}; mean exit step {mean:.2f} of {opened.num_steps}."]
    if written.kept:
        sentences.append(f"{count(written.kept, 'answer')} more from an earlier run.")
    show(Outcome(facts, sentences), as_json=json, to_stderr=not to_file)
    for reason, number in written.reasons.items():
        say(f"{count(number, 'text')} without an answer: {reason}. The label is empty.")
    if unanswered:
        raise typer.Exit(UNANSWERED)


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
    names = names_of_answers(_ANSWERS, columns)
    file = answer_file(out, [*columns, *names])
    kept = 0
    if to_file:
        if out.exists():
            kept = file.resume(texts.rows)
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
            steps += [row[names[-1]] for row in rows]
            advance("answer", kept + len(steps), len(texts))
        file.finish()
    return _Written(steps, reasons, kept)


def _check_new(out: Path, *, resume: bool) -> None:
    """Refuse a file that exists, unless it is to be continued."""
    if out.exists() and not resume:
        expected = "a file that does not exist yet"
        remedy = "Pass --resume to continue it, or name another."
        raise ArgumentError("--out", expected=expected, got=str(out), remedy=remedy)


def _answered(
    opened: Opened, texts: Texts, names: Sequence[str], reasons: dict[str, int]
) -> list[dict[str, Any]]:
    """Return rows with their answers, and count the reasons of rows without one."""
    answers = opened.answer(texts.texts)
    errors: Mapping[int, Exception] = getattr(answers, "errors", {})
    columns: Sequence[Any] = (answers.labels, answers.probabilities, answers.exit_step)
    rows: list[dict[str, Any]] = []
    for place, (row, label, share, step) in enumerate(zip(texts.rows, *columns, strict=True)):
        cells = [label, round(float(share), 4), int(step)]
        if math.isnan(share):
            cells[:2] = [None, None]
            reason = _reason(errors.get(place))
            reasons[reason] = reasons.get(reason, 0) + 1
        rows.append({**row, **dict(zip(names, cells, strict=True))})
    return rows


def _reason(error: Exception | None) -> str:
    if error is None:
        return "the model answered NaN"
    return f"{type(error).__name__}: {error}"


def _rank(opened: OpenedRanker, queries: Path, out: Path, *, as_json: bool) -> None:
    """Write the order of each query's candidates as JSON lines."""
    pools = read_pools(queries)
    file = answer_file(out, ["query", "ranking"])
    rankings = opened.predict(pools)
    rows = [
        {"query": pool.query, "ranking": ranking}
        for pool, ranking in zip(pools, rankings, strict=True)
    ]
    file.append(rows, begins=True)
    file.finish()
    said = f"{count(len(pools), 'ranking')} in {out}."
    outcome = Outcome({"queries": len(pools), "out": str(out)}, [said])
    show(outcome, as_json=as_json, to_stderr=str(out) == _STDOUT)
