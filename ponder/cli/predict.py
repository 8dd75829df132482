"""The command `predict`: answers beside the columns of a file, written as they come, and gone on with after a stop."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ponder.cli.folders import Folder, open_folder
from ponder.cli.output import probe_file, progress, show
from ponder.cli.rerank import is_ranker, rank_file
from ponder.cli.texts import Texts, count, read_texts
from ponder.errors import ArgumentError

__all__ = ["run"]

_ANSWERS = ("label", "probability", "exit_step")
_CHUNK = 512  # texts that are written at once


def run(
    folder: Path, texts: Path, out: Path, reading: Mapping[str, Any], *, resume: bool, as_json: bool
) -> None:
    """Write the answers to texts, each at its exit, as CSV; of a folder that ranks, orders as JSON lines."""
    probe_file(out, [texts, folder])
    if is_ranker(folder):
        rank_file(folder, texts, out, as_json=as_json)
        return
    if out.exists() and not resume:
        remedy = "Pass --resume to go on with it, or name another."
        raise ArgumentError(
            "--out", expected="a file that is not there yet", got=str(out), remedy=remedy
        )
    made = open_folder(folder)
    found = read_texts(texts, **reading, known=made.columns)
    names = list(found.rows[0])
    header = [*names, *(f"predicted_{name}" if name in names else name for name in _ANSWERS)]
    kept, steps, unanswered = _kept(out, header, found) if out.exists() else 0, list[int](), 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        out.open("a" if kept else "w", encoding="utf-8", newline="") as file,
        progress() as advance,
    ):
        csv.writer(file).writerows([] if kept else [header])
        for start in range(kept, len(found), _CHUNK):
            rows = _answered(made, found.take(range(start, min(start + _CHUNK, len(found)))))
            csv.writer(file).writerows(rows)
            file.flush()
            os.fsync(file.fileno())
            steps += [row[-1] for row in rows]
            unanswered += sum(row[-2] == "" for row in rows)
            advance("answer", kept + len(steps), len(found))
    mean = sum(steps) / max(len(steps), 1)
    card = {"answers": len(steps), "kept": kept, "without_answer": unanswered, "out": str(out)}
    card |= {"mean_exit_step": mean, "num_steps": made.num_steps}
    said = [
        f"{count(len(steps), 'answer')} in {out}; mean exit step {mean:.2f} of {made.num_steps}."
    ]
    said += [f"{count(kept, 'answer')} more from before."] if kept else []
    said += (
        [f"{count(unanswered, 'text')} without an answer (NaN): the label is empty."]
        if unanswered
        else []
    )
    show(card, said, [], as_json=as_json)


def _answered(made: Folder, found: Texts) -> list[list[Any]]:
    """Return rows with their answers."""
    answers = made.answer(found.texts)
    columns = answers.labels, answers.probabilities, answers.exit_step
    return [
        [*_cells(row), *((label, f"{float(share):.4f}") if share == share else ("", "")), int(step)]
        for row, label, share, step in zip(found.rows, *columns, strict=True)
    ]


def _kept(out: Path, header: Sequence[str], found: Texts) -> int:
    """Cut a file of answers behind its last whole row, and return the number of its rows."""
    with out.open(encoding="utf-8", newline="") as file:
        text = file.read()
    rows = list(csv.reader(io.StringIO(text, newline="")))
    torn = bool(rows) and (
        not text.endswith("\n") or len(rows[-1]) < len(header)
    )  # the last one, by a stop
    whole = rows[: len(rows) - torn]
    if not whole:
        return 0
    given = [_cells(row) for row in found.rows[: len(whole) - 1]]
    if whole[0] != header or [row[: len(found.rows[0])] for row in whole[1:]] != given:
        expected = "answers to these texts, to go on with"
        raise ArgumentError(
            "--out", expected=expected, got=f"others, in {out}", remedy="Name another."
        )
    part = out.with_name(f"{out.name}.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(whole)
    os.replace(part, out)
    return len(whole) - 1


def _cells(row: Mapping[str, Any]) -> list[str]:
    """Return the columns of a row as they are written."""
    texts = ("" if value is None else value for value in row.values())
    return [text if isinstance(text, str) else json.dumps(text, default=str) for text in texts]
