"""The command `certify`: a threshold on anybody's answers, an LLM's too, from a file; and its check on fresh ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder._utils.files import read_json, write_json
from ponder.calibration.agreement import most_failures
from ponder.calibration.bounds import rows_needed
from ponder.cli.check import judge
from ponder.cli.output import probe_file, show
from ponder.cli.texts import read_texts
from ponder.errors import ArgumentError

__all__ = ["check_threshold", "run"]

_FORMAT = "ponder-threshold-1"
_VALUES = 1.0 / (
    1.0 + np.exp(-np.linspace(16.0, -16.0, 801))
)  # from late exits to early; picked on no data


def run(
    answers: Path,
    columns: Mapping[str, str],
    out: Path,
    level: float,
    confidence: float,
    *,
    as_json: bool,
) -> None:
    """Certify the lowest threshold above which answers may be taken, by fixed-sequence testing with the binomial bound.

    `columns` are those of the `answer`, of its `confidence` and of the `reference`.
    """
    probe_file(out, [answers])
    sure, wrong = _read(answers, columns)
    if len(sure) < (needed := rows_needed(level, confidence)):
        expected = f"{needed} rows or more, for {level:g} with confidence {confidence:g}"
        remedy = "Give more rows, or a higher --disagreement."
        raise ArgumentError("ANSWERS", expected=expected, got=str(len(sure)), remedy=remedy)
    allowed = most_failures(len(sure), level, confidence)
    fails = [(wrong & (sure > value)).sum() > allowed for value in _VALUES]
    passed = int(np.argmax([*fails, True]))
    threshold = float(_VALUES[passed - 1]) if passed else 1.0
    taken, observed = float((sure > threshold).mean()), float((wrong & (sure > threshold)).mean())
    said = (
        f"Take answers with a confidence above {threshold:.6g}, and ask the reference for the others: other answers on "
        f"at most {100 * level:g}% of all rows like these, with {100 * confidence:g}% confidence ({len(sure)} rows)."
    )
    card: dict[str, Any] = {"threshold": threshold, "level": level, "confidence": confidence}
    card |= {
        "columns": dict(columns),
        "rows": len(sure),
        "taken": taken,
        "observed": observed,
        "statement": said,
    }
    write_json(out, _FORMAT, card)
    rows = [
        ("taken", f"{100 * taken:.1f}% of {len(sure)} rows"),
        ("other answers", f"{100 * observed:.2f}%"),
    ]
    show(card, [said], [*rows, ("written to", str(out))], as_json=as_json)


def check_threshold(file: Path, answers: Path, *, as_json: bool) -> int:
    """Judge the promise of a file of `ponder certify` on fresh rows with the same columns; return the exit code."""
    card = read_json(file, _FORMAT, "threshold")
    sure, wrong = _read(answers, card["columns"])
    taken = sure > card["threshold"]
    verdict = judge(int((wrong & taken).sum()), len(sure), card["level"], card["confidence"])
    facts = {
        "code": verdict.code,
        "verdict": verdict.sentence,
        "taken": float(taken.mean()),
        "rows": len(sure),
    }
    show(facts, [verdict.sentence], [("taken", f"{100 * taken.mean():.1f}%")], as_json=as_json)
    return verdict.code


def _read(path: Path, columns: Mapping[str, str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the confidences of the rows, and whether their answers are not those of the reference."""
    rows = read_texts(path, columns=[columns["answer"]]).rows
    missing = [f"no column {name!r}" for name in columns.values() if name not in rows[0]]
    empty = [
        f"no reference in row {n}"
        for n, row in enumerate(rows, 1)
        if not str(row.get(columns["reference"]) or "").strip()
    ]
    if missing or empty:
        expected = f"rows with the columns {', '.join(columns.values())}, none of them empty"
        remedy = "Name the columns: --answer, --confidence-column, --reference."
        raise ArgumentError("ANSWERS", expected=expected, got=[*missing, *empty][0], remedy=remedy)
    try:
        sure = np.array([float(row[columns["confidence"]]) for row in rows])
    except (TypeError, ValueError) as error:
        expected, remedy = "numbers as confidences", "Mend the column."
        raise ArgumentError("ANSWERS", expected=expected, got=str(error), remedy=remedy) from error
    wrong = np.array(
        [str(row[columns["answer"]]) != str(row[columns["reference"]]) for row in rows]
    )
    return np.nan_to_num(sure, nan=-np.inf), wrong  # what is no number is never taken
