"""The command `certify`: a threshold on any model's answers in a file, and its check."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ponder._utils.files import read_json, write_json
from ponder.calibration.answers import THRESHOLD, CertifiedAnswers, certify_answers
from ponder.cli.outcome import Outcome
from ponder.cli.output import probe_file
from ponder.cli.show import show
from ponder.cli.texts import Row, count, read_rows
from ponder.deploy.used import Used
from ponder.errors import ArgumentError

__all__ = ["check_threshold", "run"]


def run(
    answers: Path,
    columns: Mapping[str, str],
    out: Path,
    level: float,
    confidence: float,
    *,
    as_json: bool,
) -> None:
    """Certify the lowest threshold above which answers may be taken.

    `columns` are those of the `answer`, of its `confidence` and of the `reference`.
    """
    probe_file(out, [answers])
    rows = _read(answers, columns)
    found = certify_answers(*_columns(rows, columns), level=level, confidence=confidence)
    facts = {**vars(found), "columns": dict(columns)}
    if found.threshold is not None:
        write_json(out, THRESHOLD, {**facts, "used": Used.of(_keys(rows)).to_dict()})
    table = [
        ("taken", f"{100 * found.taken:.1f}% of {found.rows} rows"),
        ("other answers", f"{100 * found.observed:.2f}%"),
    ]
    if found.without_reference:
        table.append(("left out", f"{count(found.without_reference, 'row')} without a reference"))
    place = str(out) if found.threshold is not None else "nothing: there is no threshold"
    table.append(("written to", place))
    show(Outcome(facts, [found.statement], table), as_json=as_json)


def check_threshold(file: Path, answers: Path, *, as_json: bool) -> int:
    """Judge the promise of `ponder certify` on fresh rows; return the exit code."""
    card = read_json(file, THRESHOLD, "threshold")
    columns = card["columns"]
    rows = _read(answers, columns)
    fresh = Used.from_dict(card["used"]).fresh(_keys(rows))
    kept = [row for row, own in zip(rows, fresh.tolist(), strict=True) if own]
    certified = CertifiedAnswers.load(file)
    given = _columns(kept, columns)
    verdict = certified.check(*given)
    taken = float(certified.takes(given[1]).mean())
    facts = {**vars(verdict), "code": verdict.code, "taken": taken}
    table = [("taken", f"{100 * taken:.1f}% of {len(kept)} rows")]
    if len(kept) < len(rows):
        table.append(("left out", f"{count(len(rows) - len(kept), 'row')} that certified"))
    show(Outcome(facts, [verdict.sentence], table), as_json=as_json)
    return verdict.code


def _keys(rows: Sequence[Row]) -> list[str]:
    """Return all columns of each row as one text, to recognise the row."""
    return [json.dumps(dict(row), sort_keys=True, default=str) for row in rows]


def _columns(
    rows: Sequence[Row], columns: Mapping[str, str]
) -> tuple[list[Any], list[float], list[Any]]:
    """Return answers, confidences and references of rows."""
    try:
        sure = [float(row[columns["confidence"]]) for row in rows]
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            "confidences", expected="numbers", got=str(error), remedy="Mend the column."
        ) from error
    return (
        [row[columns["answer"]] for row in rows],
        sure,
        [row[columns["reference"]] for row in rows],
    )


def _read(path: Path, columns: Mapping[str, str]) -> list[Row]:
    rows = read_rows(path, "ANSWERS")
    missing = [name for name in columns.values() if name not in rows[0]]
    if missing:
        expected = f"rows with the columns {', '.join(columns.values())}"
        remedy = "Name the columns: --answer, --confidence-column, --reference."
        raise ArgumentError(
            "ANSWERS", expected=expected, got=f"no column {missing[0]!r}", remedy=remedy
        )
    return rows
