"""The command `certify`: a threshold on the answers of any model, and its check on fresh rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ponder._utils.rows import content_ids
from ponder._utils.seals import read_sealed, write_sealed
from ponder.cli.outcome import Outcome
from ponder.cli.output import probe_file
from ponder.cli.show import show
from ponder.cli.texts import Row, count, read_rows
from ponder.deploy.used import Used
from ponder.errors import ArgumentError
from ponder.statistics.answers import THRESHOLD, CertifiedAnswers, certify_answers
from ponder.statistics.repeats import check_rows

__all__ = ["check_threshold", "run"]


def run(
    answers: Path,
    columns: Mapping[str, str],
    out: Path,
    level: float,
    confidence: float,
    *,
    finite: bool = False,
    as_json: bool,
) -> None:
    """Certify the lowest threshold above which answers may be taken.

    Args:
        answers: The file of answers.
        columns: Names of the columns of the `answer`, its `confidence` and the `reference`.
        out: The file to write.
        level: Upper limit of the share of rows that are taken and differ.
        confidence: Probability with which the promise holds.
        finite: Whether the promise is about the rows of the file alone.
        as_json: Whether to print JSON.
    """
    probe_file(out, [answers])
    rows = _read(answers, columns)
    check_rows(content_ids(_keys(rows)), "ANSWERS")
    read = _Columns.of(rows, columns)
    certified = certify_answers(
        read.answers,
        read.confidences,
        read.references,
        level=level,
        confidence=confidence,
        finite=finite,
    )
    facts = {**vars(certified), "columns": dict(columns)}
    place = "nothing: there is no threshold"
    if certified.threshold is not None:
        used = Used.of(_keys(rows)).to_dict()
        write_sealed(out, THRESHOLD, {**facts, "used": used})
        place = str(out)
    table = [
        ("taken", f"{100 * certified.taken:.1f}% of {certified.rows} rows"),
        ("other answers", f"{100 * certified.observed:.2f}%"),
    ]
    if certified.to_ask is not None:
        table.append(("to ask", f"{certified.to_ask} of the {certified.without_reference} others"))
    elif certified.without_reference:
        without = count(certified.without_reference, "row")
        table.append(("left out", f"{without} without a reference"))
    table.append(("written to", place))
    show(Outcome(facts, [certified.statement], table), as_json=as_json)


def check_threshold(file: Path, answers: Path, *, as_json: bool) -> int:
    """Judge the promise of a file of `ponder certify` on fresh rows, and return the exit code.

    The file of fresh rows has the same columns.
    """
    certified = CertifiedAnswers.load(file)
    card = read_sealed(file, THRESHOLD, "threshold").settings
    columns = card["columns"]
    rows = _read(answers, columns)
    is_fresh = Used.from_dict(card["used"]).fresh(_keys(rows))
    fresh = [row for row, keep in zip(rows, is_fresh.tolist(), strict=True) if keep]
    read = _Columns.of(fresh, columns)
    verdict = certified.check(read.answers, read.confidences, read.references)
    taken = float(certified.takes(read.confidences).mean())
    facts = {**vars(verdict), "code": verdict.code, "taken": taken}
    table = [("taken", f"{100 * taken:.1f}% of {len(fresh)} rows")]
    if len(fresh) < len(rows):
        table.append(("left out", f"{count(len(rows) - len(fresh), 'row')} that certified"))
    show(Outcome(facts, [verdict.sentence], table), as_json=as_json)
    return verdict.code


def _keys(rows: Sequence[Row]) -> list[str]:
    """Return all columns of each row as one text, which identifies the row."""
    return [json.dumps(dict(row), sort_keys=True, default=str) for row in rows]


@dataclass(frozen=True)
class _Columns:
    """The three columns that are certified, `(rows,)` each."""

    answers: list[Any]
    confidences: list[float]
    references: list[Any]

    @classmethod
    def of(cls, rows: Sequence[Row], columns: Mapping[str, str]) -> Self:
        """Read the columns from rows."""
        try:
            confidences = [float(row[columns["confidence"]]) for row in rows]
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                "confidences", expected="numbers", got=str(error), remedy="Mend the column."
            ) from error
        answers = [row[columns["answer"]] for row in rows]
        references = [row[columns["reference"]] for row in rows]
        return cls(answers, confidences, references)


def _read(path: Path, columns: Mapping[str, str]) -> list[Row]:
    """Return the rows of a file; refuse one that lacks a column."""
    rows = read_rows(path, "ANSWERS")
    missing = [name for name in columns.values() if name not in rows[0]]
    if missing:
        raise ArgumentError(
            "ANSWERS",
            expected=f"rows with the columns {', '.join(columns.values())}",
            got=f"no column {missing[0]!r}",
            remedy="Name the columns: --answer, --confidence-column, --reference.",
        )
    return rows
