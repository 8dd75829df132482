"""The command `certify`: a threshold on anybody's answers, an LLM's too, from a file; and its check on fresh ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder._utils.files import replace_text
from ponder.calibration.agreement import most_failures
from ponder.calibration.bounds import rows_needed
from ponder.cli.check import judge
from ponder.cli.output import probe_file, show
from ponder.cli.texts import read_texts
from ponder.errors import ArgumentError, CheckpointError

__all__ = ["check_threshold", "run"]

_FORMAT = "ponder-threshold-1"
_VALUES = 1.0 / (1.0 + np.exp(-np.linspace(16.0, -16.0, 801)))  # from late exits to early; picked on no data


def run(
    answers: Path, columns: Mapping[str, str], out: Path, level: float, confidence: float, *, as_json: bool
) -> None:
    """Certify the lowest threshold above which answers may be taken, by fixed-sequence testing with the binomial bound.

    Args:
        answers: A file with a row an input.
        columns: The columns of the answer, of its confidence and of the reference.
        out: The JSON file of the threshold.
        level: Share of all rows that may be answered otherwise than by the reference.
        confidence: Probability with which the promise holds.
        as_json: Print JSON instead of a table.
    """
    probe_file(out, [answers])
    sure, wrong = _read(answers, columns)
    needed, allowed = rows_needed(level, confidence), most_failures(len(sure), level, confidence)
    if len(sure) < needed:
        raise ArgumentError(
            "ANSWERS",
            expected=f"{needed} rows or more, for {level:g} with confidence {confidence:g}",
            got=str(len(sure)),
            remedy="Give more rows, or a higher --disagreement.",
        )
    differ = [int((wrong & (sure > value)).sum()) for value in _VALUES]
    passed = int(np.argmax([*(many > allowed for many in differ), True]))
    threshold = float(_VALUES[passed - 1]) if passed else 1.0
    taken, observed = float((sure > threshold).mean()), float((wrong & (sure > threshold)).mean())
    said = (
        f"Take answers with a confidence above {threshold:.6g}, and ask the reference for the others: other answers on "
        f"at most {100 * level:g}% of all rows like these, with {100 * confidence:g}% confidence ({len(sure)} rows)."
    )
    card = {
        "format": _FORMAT,
        "threshold": threshold,
        "level": level,
        "confidence": confidence,
        "columns": dict(columns),
    }
    card |= {"rows": len(sure), "taken": taken, "observed": observed, "statement": said}
    replace_text(out, json.dumps(card, indent=1) + "\n")
    rows = [("taken", f"{100 * taken:.1f}% of {len(sure)} rows"), ("other answers", f"{100 * observed:.2f}%")]
    show(card, [said], [*rows, ("written to", str(out))], as_json=as_json)


def check_threshold(file: Path, answers: Path, *, as_json: bool) -> int:
    """Judge a promise on fresh rows; return 0 where it holds, 1 where it is broken, 3 where there are too few to say.

    Args:
        file: A file of `ponder certify`.
        answers: Fresh rows, with the same columns.
        as_json: Print JSON instead of a sentence.
    """
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        if card["format"] != _FORMAT:
            raise KeyError(card["format"])
        columns, level, confidence = card["columns"], float(card["level"]), float(card["confidence"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: no threshold of this version, `ponder certify` ({error!r}).") from error
    sure, wrong = _read(answers, columns)
    taken = sure > card["threshold"]
    verdict = judge(int((wrong & taken).sum()), len(sure), level, confidence)
    facts = {"code": verdict.code, "verdict": verdict.sentence, "taken": float(taken.mean()), "rows": len(sure)}
    show(facts, [verdict.sentence], [("taken", f"{100 * taken.mean():.1f}%")], as_json=as_json)
    return verdict.code


def _read(path: Path, columns: Mapping[str, str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the confidences of the rows, and whether their answers are not those of the reference."""
    rows = read_texts(path, columns=[columns["answer"]]).rows
    missing = [name for name in columns.values() if rows and name not in rows[0]]
    empty = [n for n, row in enumerate(rows, 1) if not str(row.get(columns["reference"]) or "").strip()]
    if missing or empty or not rows:
        raise ArgumentError(
            "ANSWERS",
            expected=f"rows with the columns {', '.join(columns.values())}, none of them empty",
            got=f"no column {missing[0]!r}" if missing else f"no reference in row {empty[0]}" if empty else "no rows",
            remedy="Name the columns: --answer, --confidence-column, --reference.",
        )
    try:
        sure = np.array([float(row[columns["confidence"]]) for row in rows])
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            "ANSWERS", expected="numbers as confidences", got=str(error), remedy="Mend the column."
        ) from error
    wrong = np.array([str(row[columns["answer"]]) != str(row[columns["reference"]]) for row in rows])
    return np.nan_to_num(sure, nan=-np.inf), wrong  # what is no number is never taken
