"""The command `predict`: answers beside the columns of a file, written as they come, and gone on with after a stop."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
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


def run(folder: Path, texts: Path, out: Path, reading: Mapping[str, Any], *, resume: bool, as_json: bool) -> None:
    """Write the answers to texts, each at its exit, as CSV; of a folder that ranks, orders as JSON lines."""
    if is_ranker(folder):
        rank_file(folder, texts, out, as_json=as_json)
        return
    probe_file(out, [texts, folder])
    if out.exists() and not resume:
        remedy = "Pass --resume to go on with it, or name another."
        raise ArgumentError("--out", expected="a file that is not there yet", got=str(out), remedy=remedy)
    made = open_folder(folder)
    found = read_texts(texts, **reading, known=made.columns)
    names = list(found.rows[0])
    header = [*names, *(f"predicted_{name}" if name in names else name for name in _ANSWERS)]
    kept, steps, unanswered = _kept(out, header, found) if out.exists() else 0, list[int](), 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a" if kept else "w", encoding="utf-8", newline="") as file, progress() as advance:
        csv.writer(file).writerows([] if kept else [header])
        for rows in _answered(made, found, kept):
            csv.writer(file).writerows(rows)
            file.flush()
            os.fsync(file.fileno())
            steps += [row[-1] for row in rows]
            unanswered += sum(row[-2] == "" for row in rows)
            advance("answer", kept + len(steps), len(found))
    mean = sum(steps) / max(len(steps), 1)
    card = {"answers": len(steps), "kept": kept, "without_answer": unanswered, "out": str(out)}
    card |= {"mean_exit_step": mean, "num_steps": made.num_steps}
    said = [f"{count(len(steps), 'answer')} in {out}; mean exit step {mean:.2f} of {made.num_steps}."]
    said += [f"{count(kept, 'answer')} more from before."] if kept else []
    said += [f"{count(unanswered, 'text')} without an answer (NaN): the label is empty."] if unanswered else []
    show(card, said, [], as_json=as_json)


def _answered(made: Folder, found: Texts, start: int) -> Iterator[list[list[Any]]]:
    """Yield the rows of chunks of texts, with their answers."""
    texts = found.texts
    for first in range(start, len(found), _CHUNK):
        answers = made.answer(texts[first : first + _CHUNK])
        columns = answers.labels, answers.probabilities, answers.exit_step
        yield [
            [*_cells(row), *((label, f"{float(share):.4f}") if share == share else ("", "")), int(step)]
            for row, label, share, step in zip(found.rows[first : first + _CHUNK], *columns, strict=True)
        ]


def _kept(out: Path, header: Sequence[str], found: Texts) -> int:
    """Cut a file of answers behind its last whole row, and return the number of its rows."""
    with out.open(encoding="utf-8", newline="") as file:
        torn = not file.read().endswith("\n")
        file.seek(0)
        rows = list(csv.reader(file))
    whole = [row for row in rows[: -1 if torn else None] if len(row) == len(header)]
    if not whole and len(rows) < 2:
        return 0
    own = zip(whole[1:], found.rows, strict=False)
    if (
        whole[:1] != [header]
        or len(whole) > len(found) + 1
        or any(row[: len(cells)] != cells for row, given in own for cells in [_cells(given)])
    ):
        expected = "answers to these texts, to go on with"
        raise ArgumentError("--out", expected=expected, got=f"others, in {out}", remedy="Name another.")
    part = out.with_name(f"{out.name}.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(whole)
    os.replace(part, out)
    return len(whole) - 1


def _cells(row: Mapping[str, Any]) -> list[str]:
    """Return the columns of a row as they are written."""
    values = row.values()
    return ["" if v is None else v if isinstance(v, str) else json.dumps(v, default=str) for v in values]
